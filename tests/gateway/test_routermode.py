"""llama.cpp's router-mode pages. Shapes: llama-server's README, "Using multiple models", November 2026 (b11434)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.candidates import candidates
from gateway.modelevents import changes
from gateway.routermode import Known, Status
from schemas.errors import ModelNotFound, Unavailable
from schemas.node import Capabilities, Heartbeat

SUCCESS = {"success": True}
DOCUMENTED_ENTRY = {"id", "object", "owned_by", "created", "status", "architecture", "tags", "aliases"}


def offer(model: str = "cold", cost: int | None = 1, **more: Any) -> dict[str, Any]:
    return {"model": model, "cost": cost, "devices": ["cpu:0"], **more}


def beat(node: str, *offers: dict[str, Any], **more: Any) -> Heartbeat:
    about = {"boot_id": "b", "sequence": 1, "version": "0", "started_at": 1.0}
    return Heartbeat.model_validate({"node": node, "offers": offers, **about, **more})


async def until_model(gateway: Any, model: str, value: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        while True:
            found = {one["id"]: one for one in (await gateway.http.get("/models")).json()["data"]}
            if found.get(model, {}).get("status", {}).get("value") == value:
                return found[model]
            await asyncio.sleep(0.01)


def test_the_cheapest_node_is_asked_first_and_last_the_one_that_said_it_could_not() -> None:
    beats = [
        beat("dear", offer(cost=4)),
        beat("narrow", offer(cost=1, free_bytes=1)),
        beat("wide", offer(cost=1, free_bytes=9)),
        beat("leaving", offer(cost=1), draining=True),
        beat("full", offer(cost=None, reason="no room")),
    ]
    assert candidates(beats, "cold") == ["wide", "narrow", "dear", "full"]
    assert candidates(beats, "cold", "full") == ["full"]


def test_where_nobody_can_be_asked_the_reason_is_said() -> None:
    with pytest.raises(Unavailable, match="a: it is draining; b: it is draining"):
        candidates([beat("a", offer(), draining=True), beat("b", offer(), draining=True)], "cold")
    with pytest.raises(ModelNotFound):
        candidates([beat("a", offer())], "other")


async def test_models_are_listed_as_llama_cpp_lists_them(gateway, start_worker) -> None:
    await start_worker(offers=[offer()])
    loaded = await until_model(gateway, "m", "loaded")
    assert set(loaded) >= DOCUMENTED_ENTRY
    assert loaded["status"] == {"value": "loaded", "args": []}
    assert loaded["architecture"] == {"input_modalities": ["text"], "output_modalities": ["text"]}
    cold = await until_model(gateway, "cold", "unloaded")
    assert cold["status"] == {"value": "unloaded", "args": []}
    assert cold["puna"]["on_disk"] == ["n1"]


async def test_a_model_that_loads_says_how_far_and_one_that_failed_says_so(gateway, start_worker) -> None:
    await start_worker(state="starting", more={"progress": 0.5})
    status = (await until_model(gateway, "m", "loading"))["status"]
    assert status["progress"] == {"stages": ["text_model"], "current": "text_model", "value": 0.5}
    await start_worker(node="n2", model="broken", state="crashed", more={"reason": "out of memory"})
    status = (await until_model(gateway, "broken", "unloaded"))["status"]
    assert (status["failed"], status["reason"]) == (True, "out of memory")


async def test_a_load_goes_to_the_cheapest_node_and_to_the_next_when_that_refuses(gateway, start_worker) -> None:
    refusal = {"load": (503, "unavailable", "no room any more")}
    first = await start_worker(node="n1", offers=[offer(cost=1)], refusals=refusal)
    second = await start_worker(node="n2", offers=[offer(cost=4)])
    await until_model(gateway, "cold", "unloaded")
    await gateway.until_nodes("n1", "n2")
    answer = await gateway.http.post("/models/load", json={"model": "cold"})
    assert (answer.status_code, answer.json().items() >= SUCCESS.items()) == (200, True)
    assert first.orders.get_nowait() == second.orders.get_nowait() == ("load", {"model": "cold"})


async def test_a_load_that_every_node_refuses_gives_each_reason(gateway, start_worker) -> None:
    for node, text in (("n1", "no room"), ("n2", "breaker open")):
        await start_worker(node=node, offers=[offer()], refusals={"load": (503, "unavailable", text)})
    await gateway.until_nodes("n1", "n2")
    answer = await gateway.http.post("/models/load", json={"model": "cold"})
    assert answer.status_code == 503
    assert "n1: no room" in answer.json()["error"]["message"]
    assert "n2: breaker open" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/models/load", {"model": "nope"}, 404, "no node has model"),
        ("/models/load", {"model": "m"}, 400, "model is already running"),
        ("/models/unload", {"model": "nope"}, 404, "is not found"),
        ("/models/unload", {"model": "cold"}, 400, "model is not running"),
        ("/models/load", {"model": "m", "modell": 1}, 400, "modell: no such field"),
        ("/models/load", {}, 400, "model"),
        ("/models/load", [], 400, "not an object"),
    ],
)
async def test_what_cannot_be_is_refused_with_the_reason(gateway, start_worker, path, body, status, text) -> None:
    await start_worker(offers=[offer()])
    await until_model(gateway, "m", "loaded")
    answer = await gateway.http.post(path, json=body)
    assert answer.status_code == status
    assert text in answer.json()["error"]["message"]


async def test_an_unload_reaches_every_node_that_has_the_model(gateway, start_worker) -> None:
    workers = [await start_worker(node=node) for node in ("n1", "n2")]
    await gateway.until_nodes("n1", "n2")
    answer = await gateway.http.post("/models/unload", json={"model": "m"})
    assert answer.json().items() >= SUCCESS.items()
    assert [one.orders.get_nowait() for one in workers] == [("unload", {"model": "m"})] * 2
    answer = await gateway.http.post("/models/unload", json={"model": "m", "node": "n2", "engine": "e1"})
    assert answer.status_code == 200
    assert workers[1].orders.get_nowait() == ("unload", {"engine": "e1"})
    assert workers[0].orders.empty()


async def test_a_node_that_refuses_to_unload_is_named(gateway, start_worker) -> None:
    await start_worker(node="n1")
    await start_worker(node="n2", refusals={"unload": (503, "unavailable", "pinned")})
    await gateway.until_nodes("n1", "n2")
    answer = await gateway.http.post("/models/unload", json={"model": "m"})
    assert answer.status_code == 503
    assert "unloaded on n1" in answer.json()["error"]["message"]
    assert "n2: pinned" in answer.json()["error"]["message"]


async def test_props_and_slots_of_a_model_come_from_an_engine_that_serves_it(gateway, worker) -> None:
    assert (await gateway.http.get("/props?model=m")).json() == {"total_slots": 4, "model_path": "m.gguf"}
    assert worker.orders.get_nowait() == ("engine-get", {"engine": "e1", "path": "/props"})
    assert (await gateway.http.get("/slots?model=m")).json() == [{"id": 0}]
    assert (await gateway.http.get("/slots")).status_code == 400
    assert (await gateway.http.get("/slots?model=nope")).status_code == 404
    assert (await gateway.http.get("/props")).json()["role"] == "router"


async def test_router_pages_want_a_key_where_keys_are_set(start_gateway) -> None:
    closed = await start_gateway(keys=("a:one",))
    for path in ("/models", "/models/sse", "/props", "/slots", "/sd/prometheus"):
        assert (await closed.http.get(path)).status_code == 401, path
    for path in ("/models/load", "/models/unload", "/v1/nodes/register", "/v1/nodes/heartbeat"):
        assert (await closed.http.post(path, json={})).status_code == 401, path


async def test_events_follow_a_model_from_cold_to_loaded_to_gone(gateway, start_worker) -> None:
    worker = await start_worker(engines=[], offers=[offer("m")])
    await until_model(gateway, "m", "unloaded")
    engine = {"engine": "e1", "model": "m", "devices": ["cpu:0"], "slots_total": 1, "since": 1.0}
    async with gateway.http.stream("GET", "/models/sse") as answer, asyncio.timeout(5):
        assert answer.headers["content-type"] == "text/event-stream"
        lines = answer.aiter_lines()
        await anext(lines)
        worker.engines = [engine | {"state": "starting", "progress": 0.25}]
        await worker.beat()
        event = await next_event(lines)
        assert event["data"] == {
            "status": "loading",
            "progress": {"stages": ["text_model"], "current": "text_model", "value": 0.25},
        }
        assert (event["model"], event["event"]) == ("m", "model_status")
        worker.engines = [engine | {"state": "ready"}]
        await worker.beat()
        event = await next_event(lines)
        assert (event["data"]["status"], event["data"]["info"]["id"]) == ("loaded", "m")
        worker.engines, worker.offers = [], []
        await worker.beat()
        assert await next_event(lines) == {"model": "m", "event": "model_remove"}


async def next_event(lines: Any) -> dict[str, Any]:
    while True:
        line = await anext(lines)
        if line.startswith("data: "):
            return json.loads(line[6:])


async def test_a_gateway_that_ends_ends_the_event_streams(start_gateway) -> None:
    one = await start_gateway(grace_s=30.0)
    async with one.http.stream("GET", "/models/sse") as answer, asyncio.timeout(5):
        lines = answer.aiter_lines()
        await anext(lines)
        stopping = asyncio.create_task(one.gateway.stop(30.0))
        assert [line async for line in lines if line] == []
    await stopping


def test_a_new_model_makes_clients_load_the_list_again() -> None:
    known = Known("m", Status("unloaded", failed=True, reason="gone wrong"), (), ("n",), 0, 0, 0, Capabilities())
    assert list(changes({}, {"m": known})) == [
        {"model": "*", "event": "models_reload"},
        {"model": "m", "event": "model_status", "data": {"status": "unloaded", "failed": True, "reason": "gone wrong"}},
    ]
    assert list(changes({"m": known}, {"m": known})) == []
