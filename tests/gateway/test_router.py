"""Where a request goes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from gateway.fleet import Fleet, Model, Serving, Sighting
from gateway.router import Hold, Line, Refuse, decide, held, hopeless
from schemas.node import Engine, Heartbeat


def fleet(*, gone: bool = False, nodes: bool = True, **engine: Any) -> Fleet:
    fields = {"engine": "e", "model": "m", "devices": (), "state": "ready", "slots_total": 2, "since": 0.0}
    model = Model("m", 1, (Serving("n1", Engine.model_validate(fields | engine), False),), gone=gone)
    beat = Heartbeat(node="n1", boot_id="b", sequence=1, version="1", started_at=0)
    seen = {"n1": Sighting(beat, 1, 0.0)} if nodes else {}
    return Fleet(MappingProxyType(seen), models=MappingProxyType({"m": model}), whole=True)


def test_a_ready_model_goes_into_its_line() -> None:
    assert decide("m", "batch", fleet()) == Line("batch", demand=False)


def test_with_all_slots_busy_cold_nodes_are_asked_too() -> None:
    assert decide("m", "interactive", fleet(slots_busy=2)) == Line("interactive", demand=True)


def test_a_loading_or_crashed_model_is_held_and_never_unknown() -> None:
    for state in ("starting", "crashed", "stopped", "stopping"):
        assert isinstance(decide("m", "interactive", fleet(state=state, next_retry_at=1.0)), Hold)


def test_a_model_that_needs_mending_first_is_refused_with_its_reason_and_nobody_waits_for_it() -> None:
    broken = fleet(state="crashed", unfit=True, reason="the file is cut off", next_retry_at=1.0)
    route = decide("m", "interactive", broken)
    assert isinstance(route, Refuse)
    assert (route.error.http_status, route.error.retry_after_s) == (503, 30.0)
    assert "the file is cut off" in route.error.message
    waiting = hopeless("m", broken)
    assert waiting is not None
    assert waiting.message == route.error.message


def test_a_model_whose_node_has_just_gone_is_held() -> None:
    route = decide("m", "interactive", fleet(gone=True, nodes=False))
    assert isinstance(route, Hold)
    assert "gone" in route.reason


def test_an_unknown_model_is_404_with_the_nearest_name() -> None:
    route = decide("n", "interactive", fleet())
    assert isinstance(route, Refuse)
    assert (route.error.http_status, route.error.code, route.error.param) == (404, "model_not_found", "model")


def test_nothing_is_unknown_before_the_fleet_is_known() -> None:
    for view in (Fleet(), Fleet(whole=True)):
        route = decide("m", "interactive", view)
        assert isinstance(route, Refuse)
        assert route.error.http_status == 503
        assert route.error.retry_after_s


def test_a_waiting_request_learns_when_its_model_has_gone_for_good() -> None:
    assert hopeless("m", fleet()) is None
    error = hopeless("other", fleet())
    assert error is not None
    assert error.http_status == 503
    assert held("m", fleet()) is None
    assert held("m", fleet(state="starting")) == "engine starting on n1"
