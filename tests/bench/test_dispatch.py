"""What bench/dispatch computes: loads that fall alike by seed, queues against arithmetic, waits out of a journal."""

from __future__ import annotations

import itertools
import statistics

import pytest

from bench.dispatch import queues, report
from bench.dispatch.driver import Fate, Outcome
from bench.dispatch.fleet import group_sizes
from bench.dispatch.queues import Job
from bench.dispatch.rounds import Round, matched, policies
from bench.dispatch.waits import Waits, quantile
from bench.dispatch.workload import Shape

SHAPE = Shape(load=0.85, slots=128, mean_s=0.4, sigma=1.0, seconds=40)


# -- the load
def test_a_load_falls_alike_from_the_same_seed_and_not_from_another() -> None:
    assert SHAPE.draw(3) == SHAPE.draw(3)
    assert SHAPE.draw(3) != SHAPE.draw(4)


def test_a_load_has_the_rate_and_the_service_times_it_was_told() -> None:
    requests = SHAPE.draw(1)
    assert len(requests) == pytest.approx(SHAPE.rate_per_s * 40, rel=0.05)
    assert statistics.fmean(each.service_s for each in requests) == pytest.approx(0.4, rel=0.1)
    gaps = [later.at_s - each.at_s for each, later in itertools.pairwise(requests)]
    assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)
    assert [each.number for each in requests] == list(range(len(requests)))


def test_another_load_has_the_same_service_times_in_the_same_order() -> None:
    heavier = Shape(0.95, 128, 0.4, 1.0, 40).draw(1)
    assert all(one.service_s == other.service_s for one, other in zip(SHAPE.draw(1), heavier, strict=False))


# -- queues
def test_a_central_line_gives_the_next_free_slot_to_who_came_first() -> None:
    jobs = [Job(0, 10), Job(0, 4), Job(1, 5), Job(2, 1)]
    assert queues.central(jobs, 2) == [0, 0, 3, 7]


def test_one_node_is_a_central_line_under_every_policy() -> None:
    jobs = [Job(each.at_s, each.service_s) for each in Shape(0.9, 4, 0.4, 1.0, 60).draw(1)]
    ideal = queues.central(jobs, 4)
    assert queues.random_group(jobs, 1, 4, seed=1) == ideal
    assert queues.least_loaded(jobs, 1, 4, seed=1) == ideal


def test_a_central_line_waits_as_the_formula_of_erlang_says() -> None:
    """M/M/1 at half load: the mean wait is one mean service."""
    jobs = [Job(each.at_s, each.service_s) for each in _exponential(0.5, 200_000)]
    assert statistics.fmean(queues.central(jobs, 1)) == pytest.approx(1.0, rel=0.05)


def _exponential(load: float, count: int) -> list[Job]:
    import random

    dice, at_s = random.Random(5), 0.0
    jobs = []
    for _ in range(count):
        at_s += dice.expovariate(load)
        jobs.append(Job(at_s, dice.expovariate(1.0)))
    return jobs


def test_chance_and_stale_figures_wait_longer_than_one_line() -> None:
    jobs = [Job(each.at_s, each.service_s) for each in SHAPE.draw(2)]
    ideal, group, beats = (
        Waits.of(waits)
        for waits in (
            queues.central(jobs, 128),
            queues.random_group(jobs, 32, 4, seed=1),
            queues.least_loaded(jobs, 32, 4, seed=1),
        )
    )
    assert ideal.p99 < group.p99 / 20
    assert ideal.p99 < beats.p99 / 20


# -- figures
def test_a_quantile_is_the_nearest_rank() -> None:
    ordered = [float(value) for value in range(1, 101)]
    assert [quantile(ordered, share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert quantile([4.0], 0.99) == 4.0


def test_a_wait_runs_from_the_sending_to_the_work_that_answered() -> None:
    """Request 0 was begun on a node that froze, and again on another; request 1 was never answered."""
    outcome = Outcome(1_000_000_000, {0: Fate(2_000_000_000, answered=True), 1: Fate(2_500_000_000)})
    events = [
        {"at": 2_100_000_000, "event": "begin", "node": "a", "number": 0},
        {"at": 2_600_000_000, "event": "begin", "node": "b", "number": 1},
        {"at": 5_000_000_000, "event": "begin", "node": "b", "number": 0},
        {"at": 5_400_000_000, "event": "end", "node": "b", "number": 0},
        {"at": 6_000_000_000, "event": "cut", "node": "a", "number": 0},
        {"at": 6_000_000_000, "event": "gone", "node": "a"},
    ]
    (served,) = matched(outcome, events)
    assert (served.node, served.waited_s) == ("b", 3.0)
    assert served.job == pytest.approx(Job(1.0, 0.4))
    assert outcome.lost == 1
    assert outcome.errors == {"silence": 1}


def test_a_fleet_that_hands_over_at_once_waits_as_the_ideal_does() -> None:
    outcome = Outcome(0, {number: Fate(number * 1_000_000, answered=True) for number in range(4)})
    events = []
    for number in range(4):
        at = number * 1_000_000
        events += [{"at": at, "event": "begin", "node": "a", "number": number}]
        events += [{"at": at + 500_000, "event": "end", "node": "a", "number": number}]
    waits = policies(matched(outcome, events), nodes=1, slots=4, seed=1)
    assert waits["puna"] == waits["ideal"] == waits["group"]


def round_of(number: int, puna: float, ideal: float, **more: object) -> Round:
    waits = {name: Waits(10, 1, 1, 1, p99, p99) for name, p99 in (("puna", puna), ("ideal", ideal))}
    waits |= {"group": Waits(10, 1, 1, 1, 5000, 5000), "heartbeats": Waits(10, 1, 1, 1, 9000, 9000)}
    known: dict = {
        "way": "line",
        "load": 0.95,
        "sent": 10,
        "lost": 0,
        "cut": 0,
        "errors": {},
        "retried": 0,
        "frozen_nodes": 0,
    }
    return Round(number=number, policies=waits, cores={"nodes": 0.3}, **(known | more))


def test_a_ratio_is_made_in_each_round_and_then_the_median_is_taken() -> None:
    figures = report.summary([round_of(0, 110, 100), round_of(1, 480, 400), round_of(2, 103, 100)])
    assert figures["ratio_ideal"] == pytest.approx(1.1)
    assert figures["over_ideal_p99_ms"] == 10


def test_where_nobody_waits_in_the_ideal_there_is_no_ratio_but_the_time_over_it() -> None:
    figures = report.summary([round_of(0, 9, 0)])
    assert figures["ratio_ideal"] is None
    assert figures["over_ideal_p99_ms"] == 9


def test_a_lost_request_is_told_in_the_table() -> None:
    lines = list(report.text([round_of(0, 9, 0, lost=2, errors={"silence": 2})], mean_s=1.0))
    assert any("2 lost" in line for line in lines)
    assert any("LOST: 2 of silence" in line for line in lines)


def test_nodes_are_spread_over_processes_with_some_of_them_apart() -> None:
    assert group_sizes(32, 4, 3) == [10, 10, 9, 3]
    assert group_sizes(4, 2, 0) == [2, 2]
    with pytest.raises(ValueError):
        group_sizes(4, 1, 1)
