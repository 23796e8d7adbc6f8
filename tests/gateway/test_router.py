"""Where a request goes."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

from gateway.fleet import Fleet, Model, Offered, Serving, Sighting
from gateway.router import Hold, Line, Refuse, decide, held, hopeless, not_in_time
from schemas.node import Engine, Heartbeat, Offer


def fleet(*, gone: bool = False, nodes: bool = True, **engine: Any) -> Fleet:
    fields = {"engine": "e", "model": "m", "devices": (), "state": "ready", "slots_total": 2, "since": 0.0}
    model = Model("m", 1, (Serving("n1", Engine.model_validate(fields | engine), False),), gone=gone)
    beat = Heartbeat(node="n1", boot_id="b", sequence=1, version="1", started_at=0)
    seen = {"n1": Sighting(beat, 1, 0.0)} if nodes else {}
    return Fleet(MappingProxyType(seen), models=MappingProxyType({"m": model}), whole=True)


def test_a_ready_model_goes_into_its_line() -> None:
    assert decide("m", "batch", fleet()) == Line("batch")
    assert decide("m", "interactive", fleet(slots_busy=2)) == Line("interactive")


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
    assert "gone" in route.loading.reason


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
    loading = held("m", fleet(state="starting"))
    assert loading is not None
    assert loading.reason == "engine starting on n1"


def on_disk(*offers: dict[str, Any], engines: tuple[dict[str, Any], ...] = ()) -> Fleet:
    """A model that each of some nodes has on its disk, as they would say it in heartbeats."""
    fields = {"engine": "e", "model": "m", "devices": (), "state": "ready", "slots_total": 2, "since": 0.0}
    found = tuple(Offered(f"n{n}", Offer.model_validate({"model": "m"} | each), False) for n, each in enumerate(offers))
    servings = tuple(Serving("n0", Engine.model_validate(fields | each), False) for each in engines)
    ordered = tuple(sorted(found, key=lambda one: one.rank))
    beat = Heartbeat(node="n0", boot_id="b", sequence=1, version="1", started_at=0)
    model = Model("m", 1, servings, offers=ordered)
    nodes = MappingProxyType({"n0": Sighting(beat, 1, 0.0)})
    return Fleet(nodes, models=MappingProxyType({"m": model}), whole=True)


def reason_of(fleet: Fleet) -> str:
    loading = held("m", fleet)
    assert loading is not None
    return loading.text


def test_a_model_on_disk_is_held_with_who_can_start_it_and_for_how_long_that_takes() -> None:
    cold = on_disk({"cost": 5}, {"cost": 1, "load_seconds": 12.0}, {"reason": "no room"})
    assert cold.models["m"].state == "unloaded"
    assert isinstance(decide("m", "interactive", cold), Hold)
    assert reason_of(cold) == "not loaded; n1 can start it, about 12 s to go"


def test_a_model_that_no_node_can_start_now_is_held_with_every_reason() -> None:
    full = on_disk({"reason": "no room, e1 is busy"}, {"reason": "the file is for another build", "never": True})
    assert isinstance(decide("m", "interactive", full), Hold)
    assert reason_of(full) == "n0: no room, e1 is busy; n1: the file is for another build"


def test_a_model_that_no_node_can_ever_run_is_refused_with_the_reasons_and_nobody_waits_for_it() -> None:
    never = on_disk(*({"reason": f"needs 80 GiB, has {n}", "never": True} for n in range(5)))
    route = decide("m", "interactive", never)
    assert isinstance(route, Refuse)
    assert (route.error.http_status, route.error.retry_after_s) == (503, 30.0)
    assert "needs 80 GiB, has 0" in route.error.message
    assert "2 more nodes" in route.error.message
    assert hopeless("m", never) is not None


def test_a_crashed_engine_that_nobody_waits_for_leaves_the_model_to_who_offers_it() -> None:
    crash = {"state": "crashed", "breaker_open": True, "next_retry_at": 99.0, "reason": "exit 1"}
    assert on_disk({"cost": 1}, engines=(crash,)).models["m"].state == "unloaded"
    alone = on_disk(engines=(crash,))
    assert alone.models["m"].state == "unavailable"
    assert "exit 1" in (alone.models["m"].reason or "")


def test_an_engine_that_yields_or_stops_takes_nothing_new() -> None:
    for engine in ({"yielding": True}, {"state": "stopping"}):
        view = on_disk({"cost": 4}, engines=(engine,))
        assert view.models["m"].state == "unloaded"
        assert view.models["m"].slots_total == 0
        assert on_disk(engines=(engine,)).models["m"].state == "loading"


def test_an_engine_that_starts_tells_how_far_it_is_and_how_long_it_will_take() -> None:
    view = on_disk(engines=({"state": "starting", "progress": 0.25, "load_seconds": 40.0},))
    assert reason_of(view) == "engine starting on n0, 25% done, about 30 s to go"
    loading = held("m", view)
    assert loading is not None
    error = not_in_time("m", 2.0, loading)
    assert error.retry_after_s == 30
    assert json.loads(error.body())["loading"] == {
        "state": "loading",
        "reason": "engine starting on n0",
        "progress": 0.25,
        "eta_s": 30.0,
    }
    assert json.loads(error.body())["error"]["code"] == "model_loading"
