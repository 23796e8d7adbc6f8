"""What is in demand, over times that the test hands in."""

from __future__ import annotations

from schemas.demand import DEMAND_FORGOTTEN_S, Demand
from worker.appetite import LOOK_EVERY_S, LOOK_LASTS_S, Appetite, Look

COLD = Demand()
SPILL = Demand(kind="spill", oldest_s=6.0)


def test_a_demand_that_was_heard_is_forgotten() -> None:
    appetite = Appetite()
    assert appetite.heard("m", COLD, 100.0)
    assert appetite.kind("m", 100.0 + DEMAND_FORGOTTEN_S - 0.1) == "cold"
    assert appetite.kind("m", 100.0 + DEMAND_FORGOTTEN_S) is None
    assert appetite.forget(103.0) == ["m"]
    assert appetite.wanted(103.0) == []


def test_a_repeated_demand_is_no_news_and_lasts_longer() -> None:
    appetite = Appetite()
    appetite.heard("m", COLD, 100.0)
    assert not appetite.heard("m", COLD, 101.0)
    assert appetite.kind("m", 103.0) == "cold"


def test_spill_is_the_stronger_wish_and_ends_by_itself() -> None:
    appetite = Appetite()
    appetite.heard("m", SPILL, 100.0)
    assert appetite.heard("m", COLD, 102.0) is False
    assert appetite.kind("m", 102.0) == "spill"
    assert appetite.kind("m", 103.0) == "cold"


def test_how_long_somebody_waits_counts_from_the_first_who_said_so() -> None:
    appetite = Appetite()
    appetite.heard("m", SPILL, 100.0)
    appetite.heard("m", COLD, 101.0)
    assert appetite.waited_s("m", 102.0) == 8.0
    assert appetite.waited_s("m", 110.0) == 0.0


def test_a_backlog_counts_at_two_looks_in_a_row() -> None:
    appetite = Appetite()
    assert appetite.looked(Look({"m": 3}), 100.0) == frozenset()
    assert appetite.looked(Look({"m": 3}), 100.0 + LOOK_EVERY_S) == {"m"}
    assert appetite.kind("m", 100.0 + LOOK_EVERY_S) == "spill"


def test_a_backlog_with_a_look_between_does_not_count() -> None:
    appetite = Appetite()
    appetite.looked(Look({"m": 3}), 100.0)
    appetite.looked(Look({}), 102.0)
    assert appetite.looked(Look({"m": 3}), 104.0) == frozenset()


def test_looks_that_are_far_apart_are_not_in_a_row() -> None:
    appetite = Appetite()
    appetite.looked(Look({"m": 3}), 100.0)
    assert appetite.looked(Look({"m": 3}), 100.0 + LOOK_LASTS_S) == frozenset()


def test_a_line_that_nobody_asks_for_counts_at_the_first_look() -> None:
    appetite = Appetite()
    assert appetite.looked(Look({"m": 1}, {"m"}), 100.0) == {"m"}
    assert appetite.kind("m", 101.0) == "cold"


def test_an_empty_line_is_no_demand() -> None:
    appetite = Appetite()
    assert appetite.looked(Look({"m": 0}, {"m"}), 100.0) == frozenset()
