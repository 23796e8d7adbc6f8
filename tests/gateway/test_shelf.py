"""The files on the fleet's disks, as the gateway sees them: what is parsed, and what it comes to."""

from __future__ import annotations

import random
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

from gateway.fleet import Fleet, Sighting
from gateway.ondisk import OFFERED_WITHIN_S, OnDisk, look_up
from gateway.router import Hold, Refuse, decide, held, hopeless
from gateway.shelf import Shelf, Shelver
from schemas.model import CopyProgress, CopyRecord, ModelRecord
from schemas.node import Heartbeat
from schemas.subjects import Names, encode

NAMES = Names()


@dataclass(frozen=True)
class Entry:
    value: bytes
    revision: int = 1


def copy(node: str = "n1", state: str = "Ready", model: str = "m", **more: Any) -> CopyRecord:
    return CopyRecord.model_validate({"model": model, "node": node, "state": state, "since": 1.0, **more})


def record(model: str = "m", **more: Any) -> ModelRecord:
    return ModelRecord.model_validate({"model": model, "source": "hf://a/b", **more})


def entries(*copies: CopyRecord, revision: int = 1) -> dict[str, Entry]:
    return {NAMES.copy_key(one.model, one.node): Entry(one.model_dump_json().encode(), revision) for one in copies}


def wishes(*records: ModelRecord) -> dict[str, Entry]:
    return {encode(one.model): Entry(one.model_dump_json().encode()) for one in records}


def shelf(*copies: CopyRecord, records: tuple[ModelRecord, ...] = (), now: float = 0.0) -> Shelf:
    shelver = Shelver(NAMES)
    shelver.take_models(wishes(*records))
    return shelver.take_copies(entries(*copies), now)


def fleet(*nodes: str, **about: Any) -> Fleet:
    fields = {"boot_id": "b", "sequence": 1, "version": "1", "started_at": 0.0, **about}
    seen = {node: Sighting(Heartbeat.model_validate({"node": node, **fields}), 1, 0.0) for node in nodes}
    return Fleet(MappingProxyType(seen), whole=True)


def disk(*copies: CopyRecord, records: tuple[ModelRecord, ...] = (), nodes: tuple[str, ...] = ("n1", "n2")) -> OnDisk:
    found = look_up("m", fleet(*nodes), shelf(*copies, records=records), 0.0)
    assert found is not None
    return found


# -- the view ----------------------------------------------------------------------------------------------------------
def test_only_what_changed_is_put_together_anew() -> None:
    shelver = Shelver(NAMES)
    shelver.take_models({})
    first = shelver.take_copies(entries(copy(model="a"), copy(model="b")), 1.0)
    assert shelver.take_copies(entries(copy(model="a"), copy(model="b")), 2.0) is first
    second = shelver.take_copies(entries(copy(model="a"), copy(model="b", state="Updating")), 3.0)
    assert second.models["a"] is first.models["a"]
    assert second.models["b"].copies["n1"].copy.state == "Updating"
    assert list(shelver.take_copies(entries(copy(model="b")), 4.0).models) == ["b"]


def test_a_copy_remembers_since_when_its_state_is_so_by_our_own_clock() -> None:
    shelver = Shelver(NAMES)
    shelver.take_copies(entries(copy(state="Downloading")), 1.0)
    moved = copy(state="Downloading", progress=CopyProgress(bytes_done=5))
    assert shelver.take_copies(entries(moved, revision=2), 2.0).models["m"].copies["n1"].changed_at == 1.0
    assert shelver.take_copies(entries(copy(), revision=3), 3.0).models["m"].copies["n1"].changed_at == 3.0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("m.n1", b"no json"),
        ("m.n1", b'{"model": "m"}'),
        ("m.n2", copy("n1").model_dump_json().encode()),
        ("other.n1", copy().model_dump_json().encode()),
        ("m.n1", copy(model="x" * 300).model_dump_json().encode()),
    ],
)
def test_what_is_no_record_or_under_a_wrong_key_is_counted_and_passed_over(key: str, value: bytes) -> None:
    shelver = Shelver(NAMES)
    assert not shelver.take_copies({key: Entry(value)}, 1.0).models
    assert shelver.rejected_total == 1
    shelver.take_copies({key: Entry(value)}, 2.0)
    assert shelver.rejected_total == 1


def test_after_any_changes_the_view_is_as_if_made_from_scratch() -> None:
    dice, shelver = random.Random(7), Shelver(NAMES)
    there: dict[tuple[str, str], CopyRecord] = {}
    wanted: dict[str, ModelRecord] = {}
    for step in range(300):
        model, node = f"m{dice.randrange(4)}", f"n{dice.randrange(3)}"
        if dice.random() < 0.3:
            there.pop((model, node), None)
        else:
            there[model, node] = copy(node, dice.choice(["Ready", "Pending", "Failed"]), model)
        if dice.random() < 0.3:
            wanted = {name: one for name, one in wanted.items() if dice.random() < 0.5}
        elif dice.random() < 0.3:
            wanted[model] = record(model, generation=step + 1)
        shelver.take_models(wishes(*wanted.values()))
        seen = shelver.take_copies(entries(*there.values()), float(step)).models
        fresh = shelf(*there.values(), records=tuple(wanted.values())).models
        assert list(seen) == list(fresh)
        for name, one in seen.items():
            assert one.record == fresh[name].record
            assert {node: held.copy for node, held in one.copies.items()} == {
                node: held.copy for node, held in fresh[name].copies.items()
            }


# -- what it comes to --------------------------------------------------------------------------------------------------
def test_the_best_copy_says_what_the_model_is() -> None:
    fetching = copy("n1", "Downloading", progress=CopyProgress(bytes_total=100, bytes_done=40, eta_s=6.0))
    assert (disk(fetching).state, disk(fetching).progress, disk(fetching).eta_s) == ("downloading", 0.4, 6.0)
    assert disk(fetching, copy("n2")).state == "ready"
    assert disk(fetching, copy("n2")).ready == ("n2",)
    assert disk(copy("n1", "Updating")).state == "ready"
    assert disk(copy("n1", "Verifying")).state == "verifying"
    assert disk(copy("n1", "Pending")).state == "pending"


def test_a_failure_that_is_tried_again_is_on_its_way_and_another_is_not() -> None:
    again = disk(copy("n1", "Failed", reason="no route", next_retry_at=9.0))
    assert (again.state, again.next_retry_at) == ("pending", 9.0)
    assert disk(copy("n1", "Failed", reason="there is no such file")).state == "failed"
    assert "n1: there is no such file" in str(disk(copy("n1", "Failed", reason="there is no such file")).reason)


def test_copies_of_nodes_that_are_away_do_not_count() -> None:
    assert disk(copy("n1"), nodes=("n2",)).state == "away"
    assert disk(copy("n1"), copy("n2", "Downloading"), nodes=("n2",)).state == "downloading"


def test_a_wish_that_nobody_fulfils_says_why() -> None:
    moon = {"selector": {"labels": {"zone": "moon"}}}
    assert "has not begun" in str(disk(records=(record(),), nodes=("n1",)).reason)
    assert "its selector takes none" in str(disk(records=(record(placement=moon),)).reason)
    assert disk(records=(record(),), nodes=()).reason == "no node is connected"
    assert disk(records=(record(placement={"copies": 0}),)).reason == "its record asks for no copies"


def test_copies_wanted_follow_the_record_and_the_nodes() -> None:
    assert disk(copy(), records=(record(placement={"copies": "all"}),)).wanted == 2
    assert disk(copy(), records=(record(placement={"copies": 3}),)).wanted == 3
    assert disk(copy()).wanted is None


# -- where a request goes ----------------------------------------------------------------------------------------------
def route(*copies: CopyRecord, now: float = 0.0, **more: Any) -> Any:
    seen = shelf(*copies, **more)
    nodes = fleet("n1", "n2")
    return decide("m", "interactive", nodes, lambda model: look_up(model, nodes, seen, now))


def test_a_model_on_its_way_is_503_with_progress_and_the_time_it_takes() -> None:
    fetching = copy("n1", "Downloading", progress=CopyProgress(bytes_total=100, bytes_done=40, eta_s=6.0))
    refused = route(fetching)
    assert isinstance(refused, Refuse)
    assert (refused.error.http_status, refused.error.code, refused.error.retry_after_s) == (503, "model_loading", 6.0)
    assert b'"progress":0.4' in refused.error.body()
    assert route(records=(record(),)).error.code == "model_loading"


def test_a_whole_copy_that_no_heartbeat_tells_of_yet_is_waited_for_a_while() -> None:
    assert isinstance(route(copy()), Hold)
    assert isinstance(route(copy("n1", "Verifying")), Hold)
    late = route(copy(), now=OFFERED_WITHIN_S + 1)
    assert (late.error.http_status, late.error.code) == (503, "unavailable")


def test_what_is_deleted_or_unknown_is_404_and_what_failed_is_503() -> None:
    assert route().error.http_status == 404
    assert route(copy("n1", "Deleting")).error.http_status == 404
    assert route(records=(record(deleting=True),)).error.http_status == 404
    assert route(copy("n1", "Failed", reason="x")).error.code == "unavailable"


def test_who_waits_for_a_model_goes_on_waiting_only_while_it_is_about_to_be_there() -> None:
    nodes = fleet("n1")
    for state, waits in (("Ready", True), ("Updating", True), ("Failed", False), ("Deleting", False)):
        seen = shelf(copy("n1", state))
        look = lambda model, seen=seen: look_up(model, nodes, seen, 0.0)  # noqa: E731
        assert (hopeless("m", nodes, look) is None) is waits, state
        assert held("m", nodes, look) is not None
