"""The ordinary way of a request, streamed and not."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import nats

CHAT = "/v1/chat/completions"


async def lines_of(response: httpx2.Response) -> list[str]:
    return [line async for line in response.aiter_lines() if line]


async def test_a_stream_comes_through_byte_for_byte(gateway, worker) -> None:
    asked = gateway.ask(stream=True, headers={"x-request-id": "mine-1"})
    job = await worker.take()
    assert job.headers["Puna-Op"] == "chat"
    assert job.headers["Puna-Request"].startswith("mine-1_")
    assert job.body["messages"][0]["content"] == "hi"
    await job.answer("one ", "two")
    response = await asked
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-puna-node"] == "n1"
    assert int(response.headers["x-puna-queue-ms"]) >= 0
    assert "queue;dur=" in response.headers["server-timing"]
    assert response.text.endswith("data: [DONE]\n\n")
    assert response.text.count("data: ") == 3


async def test_an_answer_in_one_piece_comes_with_the_engines_own_bytes(gateway, worker) -> None:
    asked = gateway.ask()
    job = await worker.take()
    await job.answer_whole({"choices": [], "usage": {"total_tokens": 3}})
    response = await asked
    assert response.json() == {"choices": [], "usage": {"total_tokens": 3}}
    assert response.headers["content-type"] == "application/json"
    assert "openai-processing-ms" in response.headers


async def test_the_engines_own_4xx_comes_through_as_it_came(gateway, worker) -> None:
    for stream in (True, False):
        asked = gateway.ask(stream=stream)
        job = await worker.take()
        await job.answer_whole({"error": {"message": "context is full", "code": 400}}, status=400)
        response = await asked
        assert response.status_code == 400
        assert response.json() == {"error": {"message": "context is full", "code": 400}}


async def test_an_engines_500_costs_a_try_and_then_comes_through_as_it_came(gateway, worker) -> None:
    asked = gateway.ask()
    for n in range(3):
        job = await worker.take()
        await job.answer_whole({"error": {"message": f"try {n}"}}, status=500)
    response = await asked
    assert (response.status_code, response.json()) == (500, {"error": {"message": "try 2"}})


async def test_an_engines_501_is_final(gateway, worker) -> None:
    asked = gateway.ask()
    job = await worker.take()
    await job.answer_whole({"error": {"message": "no embeddings here"}}, status=501)
    assert (await asked).status_code == 501


async def test_an_error_frame_keeps_status_and_body(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    assert await job.accept() == b"go"
    body = {"error": {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "ctx"}}
    await job.frame("error", {"code": "invalid_request", "status": 400, "retryable": False, "body": body})
    response = await asked
    assert (response.status_code, response.json()) == (400, body)


async def test_two_requests_with_the_same_client_id_are_two_requests(gateway, worker) -> None:
    for _ in range(2):
        asked = gateway.ask(headers={"x-request-id": "same"})
        job = await worker.take(timeout_s=3)
        await job.answer_whole({"ok": True})
        assert (await asked).status_code == 200


async def test_the_batch_lane_is_a_header_away(gateway, worker) -> None:
    asked = gateway.ask(headers={"x-puna-lane": "batch"})
    job = await worker.take("batch")
    await job.answer_whole({})
    assert (await asked).status_code == 200
    wrong = await gateway.ask(headers={"x-puna-lane": "fast"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "x-puna-lane")


async def test_every_operation_reaches_the_worker_under_its_own_name(gateway, worker) -> None:
    bodies = {
        "/v1/completions": ("completions", {"prompt": "x"}),
        "/v1/embeddings": ("embeddings", {"input": "x"}),
        "/v1/rerank": ("rerank", {"query": "x", "documents": ["y"]}),
        "/v1/responses": ("responses", {"input": "x"}),
        "/v1/messages": ("messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}),
        "/tokenize": ("tokenize", {"content": "x"}),
        "/detokenize": ("detokenize", {"tokens": [1]}),
        "/infill": ("infill", {"input_prefix": "x"}),
    }
    for path, (op, body) in bodies.items():
        asked = asyncio.create_task(gateway.http.post(path, json={"model": "m"} | body))
        job = await worker.take()
        assert job.headers["Puna-Op"] == op
        await job.answer_whole({"op": op})
        assert (await asked).json() == {"op": op}


async def test_a_waiting_stream_is_kept_alive_and_then_fails_inside_the_stream(start_gateway, start_worker) -> None:
    gateway = await start_gateway(keep_alive_s=0.3)
    worker = await start_worker()
    await gateway.until_seen()
    body = gateway.chat(stream=True)
    async with gateway.http.stream("POST", CHAT, json=body, headers={"x-puna-deadline-ms": "1200"}) as response:
        assert response.status_code == 200
        lines = await lines_of(response)
    assert lines[:2] == [": keep-alive", ": keep-alive"]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in "".join(lines)
    await worker.until_line_has(0)


async def test_an_early_deadline_is_a_real_504(gateway, worker) -> None:
    response = await gateway.ask(stream=True, headers={"x-puna-deadline-ms": "300"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "true"


async def test_a_model_that_only_loads_holds_the_request_until_it_is_ready(gateway, start_worker) -> None:
    worker = await start_worker(state="starting")
    await gateway.until_seen()
    asked = gateway.ask(headers={"x-puna-deadline-ms": "500"})
    response = await asked
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
    assert int(response.headers["retry-after"]) > 0
    assert response.json()["loading"]["state"] == "loading"
    asked = gateway.ask()
    await worker.until_line_has(1)
    assert worker.demands.empty(), "an engine is on its way; another one is not asked for"
    worker.state = "ready"
    await worker.beat()
    job = await worker.take()
    await job.answer_whole({})
    assert (await asked).status_code == 200


async def test_credit_follows_what_was_written_once_a_second(gateway, worker) -> None:
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(b"data: {}\n\n")
    token = job.headers["Puna-Reply"].rpartition(".")[2]
    async with asyncio.timeout(3):
        while await worker.credits.get() != f"{token} 1 3":
            pass
    await job.data(b"data: [DONE]\n\n")
    await job.end()
    assert (await asked).status_code == 200


async def test_two_gateways_side_by_side_serve_their_own_clients(start_gateway, start_worker) -> None:
    gateways = [await start_gateway(), await start_gateway()]
    worker = await start_worker()
    for one in gateways:
        await one.until_seen()
    asked = [one.ask(user=f"user-{index}") for index, one in enumerate(gateways)]
    for _ in asked:
        job = await worker.take()
        await job.answer_whole({"user": job.body["user"]})
    assert [(await one).json()["user"] for one in asked] == ["user-0", "user-1"]


async def test_a_gateway_that_stops_ends_its_streams_with_an_error(start_gateway, start_worker) -> None:
    gateway = await start_gateway()
    worker = await start_worker()
    await gateway.until_seen()
    asked = gateway.ask(stream=True)
    job = await worker.take()
    await job.begin()
    await job.data(b"data: {}\n\n")
    stopping = asyncio.create_task(gateway.gateway.stop(0.3))
    response = await asked
    await stopping
    assert "shutting down" in response.text
    assert (await asyncio.wait_for(worker.cancels.get(), 2))["request"] == job.headers["Puna-Request"]


async def test_a_body_over_max_payload_goes_through_the_object_store(gateway, worker) -> None:
    text = "x" * 1_500_000
    asked = gateway.ask(messages=[{"role": "user", "content": text}])
    job = await worker.take()
    assert job.message.data == b""
    blob = job.headers["Puna-Blob"]
    store = await worker.nc.jetstream().object_store("puna_blobs")
    body = (await store.get(blob)).data
    assert json.loads(body or b"{}")["messages"][0]["content"] == text
    await job.answer_whole({"ok": True})
    assert (await asked).status_code == 200
    async with asyncio.timeout(3):
        while any(info.name == blob and not info.deleted for info in await _objects(store)):
            await asyncio.sleep(0.01)


async def _objects(store: Any) -> list[Any]:
    try:
        return await store.list()
    except nats.js.errors.NotFoundError:
        return []
