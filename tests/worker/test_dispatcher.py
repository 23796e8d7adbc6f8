"""The decider, without a loop: every row of its table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.dispatcher import WAITING_LIMIT_REQUESTS, Question, decide

ASK = Question(
    origin="group", node="n", model="m", framed=True, serves=True, free=1, ready=True, draining=False, time_left_s=10
)


@pytest.mark.parametrize("origin", ["line", "group", "node", "http"])
def test_a_free_slot_serves(origin: str) -> None:
    assert decide(replace(ASK, origin=origin)).verb == "serve"


@pytest.mark.parametrize(
    ("origin", "framed", "verb"),
    [
        ("line", True, "give_back"),
        ("group", True, "line"),
        ("group", False, "line"),
        ("node", False, "line"),
        ("node", True, "refuse"),
        ("http", False, "wait"),
    ],
)
def test_without_a_free_slot_nothing_is_lost(origin: str, framed: bool, verb: str) -> None:
    decision = decide(replace(ASK, origin=origin, framed=framed, free=0))
    assert decision.verb == verb
    assert decision.error is None or decision.error.retryable


@pytest.mark.parametrize(("origin", "verb"), [("line", "give_back"), ("group", "line"), ("node", "refuse")])
def test_a_model_that_is_not_here_goes_elsewhere(origin: str, verb: str) -> None:
    assert decide(replace(ASK, origin=origin, serves=False, ready=False, free=0)).verb == verb


def test_a_model_that_is_not_here_is_not_found_over_http() -> None:
    error = decide(replace(ASK, origin="http", serves=False, free=0)).error
    assert error is not None
    assert error.code == "model_not_found"


def test_an_expired_request_is_refused_even_with_a_free_slot() -> None:
    error = decide(replace(ASK, time_left_s=0)).error
    assert error is not None
    assert error.code == "deadline_exceeded"


def test_a_draining_node_serves_nothing_new() -> None:
    draining = replace(ASK, draining=True)
    verbs = [decide(replace(draining, origin=origin)).verb for origin in ("line", "group", "node", "http")]
    assert verbs == ["give_back", "line", "refuse", "refuse"]


def test_a_job_for_an_engine_that_loads_comes_back_after_a_pause() -> None:
    assert decide(replace(ASK, origin="line", ready=False, free=0)).delay_s > 0
    assert decide(replace(ASK, origin="line", free=0)).delay_s == 0


def test_a_job_that_an_engine_can_be_started_for_is_held() -> None:
    cold = replace(ASK, origin="line", free=0, ready=False, here=False, may_hold=True)
    assert decide(cold).verb == "hold"
    assert decide(replace(cold, draining=True)).verb == "give_back"


def test_a_job_that_a_stale_cold_pull_brings_goes_back_at_once() -> None:
    stale = decide(replace(ASK, origin="line", free=0, ready=False, here=False))
    assert (stale.verb, stale.delay_s) == ("give_back", 0.0)


def test_a_suspect_without_an_engine_of_its_own_rests() -> None:
    decision = decide(replace(ASK, origin="line", free=0, suspect=True))
    assert decision.verb == "give_back"
    assert decision.delay_s > 0


def test_the_limit_of_a_device_bounds_what_waits() -> None:
    error = decide(replace(ASK, origin="http", free=0, may_wait=False)).error
    assert error is not None
    assert error.http_status == 429


def test_the_room_for_waiting_is_bounded() -> None:
    full = replace(ASK, origin="http", free=0, waiting=WAITING_LIMIT_REQUESTS)
    error = decide(full).error
    assert error is not None
    assert (error.http_status, error.retry_after_s) == (429, 2.0)


def test_an_attempt_that_runs_here_is_dropped_from_the_line_and_refused_elsewhere() -> None:
    again = replace(ASK, running_epoch=1)
    assert decide(replace(again, origin="line")).verb == "drop"
    assert decide(again).verb == "refuse"


def test_a_later_attempt_takes_the_earlier_ones_slot() -> None:
    decision = decide(replace(ASK, free=0, epoch=2, running_epoch=1))
    assert (decision.verb, decision.ends_older) == ("serve", True)
