"""What desired state asks of a node, row by row of the decider's table, and what a whole fleet makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.model import CopyRecord, ModelRecord
from worker.desired.asides import cannot
from worker.desired.decide import (
    MOST_ASIDE,
    Ensure,
    Held,
    Leave,
    Made,
    Me,
    Neighbour,
    Remove,
    Verdict,
    decide,
    holders_of,
    made_for,
    of_record,
)

GPU = {"gpu": "yes"}


def record(copies: Any = "all", **fields: Any) -> ModelRecord:
    placement = {"copies": copies, "selector": fields.pop("selector", {})}
    return ModelRecord.model_validate({"model": "m", "source": "hf://o/r:Q4_K_M", "placement": placement} | fields)


def me(node: str = "a", labels: Mapping[str, str] | None = None) -> Me:
    return Me(node, labels or {}, lambda each: each.model_copy(update={"variants": ()}))


def right(of: ModelRecord) -> Held:
    """A copy that is just as the record wants it."""
    return Held(made_for(of.model_copy(update={"variants": ()})), recorded=True, noted=of)


def nodes(*names: str, ready: str = "", away: str = "", labels: Mapping[str, str] | None = None) -> Any:
    """By name; one letter each."""
    return {
        name: Neighbour(dict(labels or {}) | ({"model.m": "Ready"} if name in ready else {}), name not in away)
        for name in names
    }


ON_ITS_WAY = Held(None, recorded=True)


def test_a_model_that_is_wanted_and_not_here_is_fetched() -> None:
    verdict = of_record("m", record(), None, me(), None)
    assert verdict == Ensure(record(), "its record wants it on every node that matches", fetches=True)


def test_a_copy_that_is_as_it_should_be_is_left_and_must_stay() -> None:
    verdict = of_record("m", record(), None, me(), right(record()))
    assert isinstance(verdict, Leave) and verdict.wanted


@pytest.mark.parametrize(
    ("change", "fetches"),
    [
        ({"source": "hf://o/r:Q8_0"}, True),
        ({"files": ["x.gguf"]}, True),
        ({"revision": "two"}, True),
        ({"profile": {"slots": 2}}, False),
        ({"retain": True}, False),
        ({"generation": 2}, False),
        ({"placement": {"copies": "all", "selector": {"labels": {}, "preferred": []}}, "restored": True}, False),
    ],
)
def test_a_copy_that_is_for_another_record_is_brought_up_to_date(change: dict[str, Any], fetches: bool) -> None:
    new = ModelRecord.model_validate(record().model_dump() | change)
    verdict = of_record("m", new, None, me(), right(record()))
    assert isinstance(verdict, Ensure) and verdict.record == new
    assert verdict.fetches == fetches


def test_a_broken_copy_or_one_on_its_way_is_ensured() -> None:
    verdict = of_record("m", record(), None, me(), ON_ITS_WAY)
    assert isinstance(verdict, Ensure) and verdict.fetches


def test_a_record_that_is_not_noted_on_the_disk_is_noted_without_a_fetch() -> None:
    held = Held(made_for(record()), recorded=True, noted=None)
    verdict = of_record("m", record(), None, me(), held)
    assert isinstance(verdict, Ensure) and not verdict.fetches


@pytest.mark.parametrize("held", [right(record()), ON_ITS_WAY, Held(None, recorded=False)])
@pytest.mark.parametrize("retain", [True, False])
def test_a_tombstone_takes_whatever_is_here_without_asking_who_else_there_is(held: Held, retain: bool) -> None:
    assert of_record("m", record(deleting=True, retain=retain), None, me(), held) == Remove("it was deleted", retain)


def test_a_tombstone_of_a_model_that_is_not_here_asks_for_nothing() -> None:
    verdict = of_record("m", record(deleting=True), None, me(), None)
    assert isinstance(verdict, Leave) and not verdict.wanted


def test_a_record_that_cannot_be_read_changes_nothing() -> None:
    verdict = decide({"m": None}, None, me(), {"m": right(record())})["m"]
    assert isinstance(verdict, Leave) and verdict.wanted


def test_a_selector_that_does_not_match_takes_the_copy_at_once() -> None:
    wanted = record(selector={"labels": GPU})
    verdict = of_record("m", wanted, nodes("b", ready=""), me(), right(wanted))
    assert isinstance(verdict, Remove)
    verdict = of_record("m", wanted, None, me(), None)
    assert isinstance(verdict, Leave) and not verdict.wanted
    assert isinstance(of_record("m", wanted, None, me(labels=GPU), None), Ensure)


def test_nothing_is_decided_about_shares_before_the_other_nodes_are_known() -> None:
    verdict = of_record("m", record(copies=1), None, me(), right(record(copies=1)))
    assert isinstance(verdict, Leave) and verdict.wanted


def _other(copies: int = 1) -> tuple[str, str, ModelRecord]:
    """A node that holds one copy, and one that does not, of a and b."""
    wanted = record(copies=copies)
    [holder] = holders_of(wanted, copies, nodes("a", "b"), me())
    return holder, "b" if holder == "a" else "a", wanted


def test_a_copy_goes_only_once_all_that_hold_the_model_are_ready() -> None:
    holder, other, wanted = _other()
    held = right(wanted)
    assert isinstance(of_record("m", wanted, nodes("a", "b"), me(holder), None), Ensure)
    waits = of_record("m", wanted, nodes("a", "b"), me(other), held)
    assert waits == Leave(f"it goes once it is ready on {holder}", wanted=True)
    goes = of_record("m", wanted, nodes("a", "b", ready=holder), me(other), held)
    assert goes == Remove(f"others hold it: {holder}", retain=False)


def test_a_node_that_is_away_for_a_moment_keeps_its_share_and_is_not_taken_for_ready() -> None:
    holder, other, wanted = _other()
    there = nodes("a", "b", ready=holder, away=holder)
    assert isinstance(of_record("m", wanted, there, me(other), None), Leave)
    waits = of_record("m", wanted, there, me(other), right(wanted))
    assert isinstance(waits, Leave) and waits.wanted
    gone = nodes(other)
    assert isinstance(of_record("m", wanted, gone, me(other), None), Ensure)


def test_a_record_that_wants_no_copy_takes_all() -> None:
    wanted = record(copies=0)
    assert isinstance(of_record("m", wanted, nodes("a", "b"), me(), right(wanted)), Remove)
    assert isinstance(of_record("m", wanted, nodes("a", "b"), me(), None), Leave)


def test_without_a_record_only_what_was_made_for_one_and_surely_is_gone_goes() -> None:
    copies = {"m": Held(made_for(record()), recorded=True, retain=True), "own": Held(None, recorded=False)}
    assert decide({}, None, me(), copies, gone={"m", "own"}) == {"m": Remove("its record was taken away", retain=True)}
    [unsure] = decide({}, None, me(), copies).values()
    assert isinstance(unsure, Leave) and unsure.wanted


def test_the_variant_that_suits_the_node_counts_not_the_record_as_a_whole() -> None:
    wanted = record(variants=[{"quant": "Q8_0"}])
    best = wanted.model_copy(update={"variants": (), "source": "hf://o/r:Q8_0"})
    mine = Me("a", {}, lambda _: best)
    assert isinstance(of_record("m", wanted, None, mine, Held(made_for(best), recorded=True, noted=wanted)), Leave)
    plain = Held(made_for(wanted.model_copy(update={"variants": ()})), recorded=True, noted=wanted)
    verdict = of_record("m", wanted, None, mine, plain)
    assert isinstance(verdict, Ensure) and verdict.fetches and verdict.record is wanted


NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


def _fleet(wanted: ModelRecord, names: list[str], have: set[str]) -> dict[str, Verdict]:
    there = nodes(*names, ready="".join(have))
    return {
        name: of_record("m", wanted, there, me(name, there[name].labels), right(wanted) if name in have else None)
        for name in names
    }


@given(names=NAMES, copies=st.integers(0, 9), data=st.data())
def test_a_fleet_settles_on_as_many_copies_as_are_wanted_and_never_has_fewer_on_the_way(
    names: list[str], copies: int, data: st.DataObject
) -> None:
    wanted, have = record(copies=copies), set(data.draw(st.lists(st.sampled_from(names), unique=True)))
    at_least = min(copies, len(have))
    for _ in range(3):
        verdicts = _fleet(wanted, names, have)
        have -= {name for name, verdict in verdicts.items() if isinstance(verdict, Remove)}
        assert len(have) >= at_least
        have |= {name for name, verdict in verdicts.items() if isinstance(verdict, Ensure)}
    assert len(have) == min(copies, len(names))
    assert all(isinstance(verdict, Leave) for verdict in _fleet(wanted, names, have).values())


@given(names=NAMES, copies=st.integers(1, 4), data=st.data())
def test_a_node_that_comes_or_goes_moves_no_more_than_its_own_share(
    names: list[str], copies: int, data: st.DataObject
) -> None:
    wanted, lost = record(copies=copies), data.draw(st.sampled_from(names))
    before = set(holders_of(wanted, copies, nodes(*names), me(names[0])))
    rest = [name for name in names if name != lost]
    if rest:
        after = set(holders_of(wanted, copies, nodes(*rest), me(rest[0])))
        assert len(after - before) <= (1 if lost in before else 0)


def test_what_a_copy_was_made_for_tells_profiles_apart() -> None:
    one, other = made_for(record()), made_for(record(profile={"pinned": True}))
    assert one.want == other.want
    assert isinstance(one, Made) and one != other


# -- nodes that cannot hold it -----------------------------------------------------------------------------------------
def beside(node: str, *aside: str) -> Me:
    return Me(node, {}, lambda each: each, lambda _: aside)


def test_the_next_node_takes_the_share_of_one_that_cannot_hold_it() -> None:
    of, all_ = record(1), nodes("a", "b", "c", "d")
    first, second, *_ = holders_of(of, 4, all_, me("a"))
    assert isinstance(of_record("m", of, all_, me(second), None), Leave)
    verdict = of_record("m", of, all_, beside(second, first), None)
    assert isinstance(verdict, Ensure)
    made = decide({"m": of}, all_, beside(second, first), {"m": right(of)})["m"]
    assert isinstance(made, Leave) and made.wanted


def test_a_node_that_cannot_hold_it_goes_on_trying_and_has_its_share_back_once_it_can() -> None:
    of = record(1)
    first, second, *_ = holders_of(of, 3, nodes("a", "b", "c"), me("a"))
    assert isinstance(of_record("m", of, nodes("a", "b", "c"), beside(first, first), ON_ITS_WAY), Ensure)
    tries = of_record("m", of, nodes("a", "b", "c"), me(second), right(of))
    assert isinstance(tries, Leave) and tries.wanted, "it stays until the first one has it"
    assert isinstance(of_record("m", of, nodes("a", "b", "c", ready=first), me(second), right(of)), Remove)


def test_when_very_many_nodes_cannot_hold_it_no_others_are_asked() -> None:
    names = [f"n{number}" for number in range(40)]
    of, all_ = record(1), {name: Neighbour({}) for name in names}
    ranked = holders_of(of, 40, all_, me("n0"))
    asked = [name for name in names if name in holders_of(of, 1, all_, beside(name, *ranked[:30]))]
    assert set(asked) == set(ranked[: MOST_ASIDE + 1])


@given(st.sets(st.sampled_from("abcdefgh"), max_size=7), st.integers(1, 8))
def test_copies_are_held_as_often_as_wanted_by_nodes_that_can(aside: set[str], copies: int) -> None:
    all_, of = nodes(*"abcdefgh"), record(copies)
    able = set("abcdefgh") - aside
    ensure = {name for name in able if isinstance(of_record("m", of, all_, beside(name, *aside), None), Ensure)}
    assert len(ensure) == min(copies, len(able))


@pytest.mark.parametrize(
    ("error", "source", "expected"),
    [
        ("vram_insufficient", "hf://o/r", True),
        ("no_space", "hf://o/r", True),
        ("source_not_found", "file:///m.gguf", True),
        ("source_not_found", "hf://o/r", False),
        ("source_unreachable", "hf://o/r", False),
        ("source_corrupt", "hf://o/r", False),
    ],
)
def test_what_a_node_says_of_itself_counts_and_what_it_says_of_the_source_does_not(
    error: str, source: str, expected: bool
) -> None:
    copy = CopyRecord(model="m", node="a", state="Failed", since=0, source=source, generation=3, error=error)
    of = record(1, source=source, generation=3)
    assert cannot(copy, of) is expected
    assert not cannot(copy, record(1, source=source, generation=4)), "it was of another want"
    assert not cannot(copy.model_copy(update={"state": "Downloading"}), of)
