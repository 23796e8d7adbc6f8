"""The fleet view: what lives, what serves, judged by our own clock."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from gateway.fleet import GONE_KEPT_S, Roster
from schemas.topology import NODE_TTL_S


@dataclass(frozen=True)
class Value:
    value: bytes
    revision: int


def beat(node: str = "n1", sequence: int = 1, revision: int | None = None, **more: Any) -> Value:
    engine = {"engine": "e", "model": "m", "devices": ["cpu:0"], "state": "ready", "slots_total": 4, "since": 0}
    body = {
        "node": node,
        "boot_id": "b",
        "sequence": sequence,
        "version": "1",
        "started_at": 1700000000,
        "engines": [engine | more.pop("engine", {})],
    }
    return Value(json.dumps(body | more).encode(), revision or sequence)


def test_a_node_lives_while_its_sequence_moves_and_is_remembered_when_it_stops() -> None:
    roster = Roster()
    roster.take({"n1": beat(sequence=1)}, 0.0)
    roster.take({"n1": beat(sequence=2)}, NODE_TTL_S)
    assert "n1" in roster.age(NODE_TTL_S + 5).nodes
    fleet = roster.age(2 * NODE_TTL_S + 0.1)
    assert not fleet.nodes
    assert fleet.models["m"].state == "gone"
    assert not roster.age(2 * NODE_TTL_S + GONE_KEPT_S).models


def test_the_same_sequence_written_again_is_no_sign_of_life() -> None:
    roster = Roster()
    roster.take({"n1": beat(sequence=1, revision=1)}, 0.0)
    roster.take({"n1": beat(sequence=1, revision=2)}, 5.0)
    assert not roster.age(NODE_TTL_S + 0.1).nodes


def test_a_key_that_is_taken_away_ends_the_node_at_once() -> None:
    roster = Roster()
    roster.take({"n1": beat()}, 0.0)
    fleet = roster.take({}, NODE_TTL_S + 1 - NODE_TTL_S)
    assert not fleet.nodes
    assert "n1" in fleet.gone


def test_after_a_new_session_an_empty_bucket_ends_nobody_before_their_time() -> None:
    roster = Roster()
    roster.take({"n1": beat()}, 0.0)
    roster.session(100.0)
    assert "n1" in roster.take({}, 100.1).nodes
    assert "n1" in roster.age(100.0 + NODE_TTL_S - 0.1).nodes
    assert "n1" not in roster.age(100.0 + NODE_TTL_S + 0.1).nodes


def test_revisions_that_start_anew_are_read_again() -> None:
    roster = Roster()
    roster.take({"n1": beat(sequence=7, revision=3)}, 0.0)
    roster.session(1.0)
    fleet = roster.take({"n1": beat(sequence=9, revision=3)}, 1.1)
    assert fleet.nodes["n1"].beat.sequence == 9


def test_what_is_no_heartbeat_is_counted_once_and_passed_over() -> None:
    roster = Roster()
    for _ in range(3):
        fleet = roster.take({"bad": Value(b"{not json", 5), "n1": beat()}, 0.0)
    assert roster.rejected_total == 1
    assert list(fleet.nodes) == ["n1"]


def test_a_model_is_as_ready_as_its_best_engine() -> None:
    roster = Roster()
    starting = beat("n1", engine={"state": "starting", "reason": "loading", "progress": 0.4})
    assert roster.take({"n1": starting}, 0.0).models["m"].state == "loading"
    assert roster.fleet.models["m"].reason == "engine starting on n1: loading"
    fleet = roster.take({"n1": starting, "n2": beat("n2", engine={"slots_busy": 1})}, 0.1)
    assert (fleet.models["m"].state, fleet.models["m"].slots_total, fleet.models["m"].slots_busy) == ("ready", 4, 1)


def test_a_model_that_may_not_be_started_is_unavailable_and_says_why() -> None:
    unfit = {"state": "crashed", "unfit": True, "next_retry_at": 1.0, "reason": "the model file is none"}
    model = Roster().take({"n1": beat(engine=unfit)}, 0.0).models["m"]
    assert (model.state, model.reason) == ("unavailable", "engine not started on n1: the model file is none")
    crashed = beat("n2", engine={"state": "crashed", "reason": "exit code 1", "next_retry_at": 2.0})
    model = Roster().take({"n1": beat(engine=unfit), "n2": crashed}, 0.0).models["m"]
    assert (model.state, model.reason) == ("loading", "engine crashed on n2: exit code 1")


def test_a_crashed_engine_without_a_next_try_makes_its_model_unavailable() -> None:
    crashed = beat(engine={"state": "crashed", "reason": "out of memory"})
    assert Roster().take({"n1": crashed}, 0.0).models["m"].state == "unavailable"
    retried = beat(engine={"state": "crashed", "next_retry_at": 1.0})
    assert Roster().take({"n1": retried}, 0.0).models["m"].state == "loading"


def test_a_draining_node_offers_no_slots() -> None:
    model = Roster().take({"n1": beat(draining=True)}, 0.0).models["m"]
    assert (model.slots_total, model.state, model.reason) == (0, "loading", "node n1 is draining")


def test_five_hundred_nodes_cost_little_for_one_that_changed() -> None:
    roster = Roster()
    entries = {f"n{i}": beat(f"n{i}", sequence=i + 1) for i in range(500)}
    roster.take(entries, 0.0)
    started = time.perf_counter()
    for turn in range(10):
        entries["n0"] = beat("n0", sequence=1000 + turn)
        roster.take(entries, 0.1 * turn)
    assert (time.perf_counter() - started) / 10 < 0.05


def test_offers_of_all_nodes_stand_behind_a_model_that_no_engine_serves() -> None:
    roster = Roster()
    cheap = {"model": "cold", "cost": 1}
    roster.take(
        {"n1": beat("n1", offers=[{"model": "cold", "cost": 4}]), "n2": beat("n2", offers=[cheap, {"model": "m"}])}, 0.0
    )
    model = roster.fleet.models["cold"]
    assert (model.state, model.nodes) == ("unloaded", ("n1", "n2"))
    assert [one.node for one in model.offers] == ["n2", "n1"]
    assert roster.fleet.models["m"].state == "ready"
    assert roster.age(NODE_TTL_S + 0.1).models["cold"].state == "gone"
