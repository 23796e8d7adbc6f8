"""The worker's own HTTP, its command line and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import json
import platform
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIStatusError, AsyncOpenAI, BadRequestError, NotFoundError

MODEL = "org/fake-1.5:Q4"
TEXT = "".join(f"t{number} " for number in range(20))
ASK: list[Any] = [{"role": "user", "content": "count"}]


@pytest.fixture
async def client() -> AsyncIterator[Callable[..., AsyncOpenAI]]:
    """Factory: SDK clients that are closed with the test."""
    made: list[AsyncOpenAI] = []

    def make(worker: Any, key: str = "none") -> AsyncOpenAI:
        made.append(AsyncOpenAI(base_url=f"{worker.http}/v1", api_key=key, max_retries=0))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def get(worker: Any, path: str, **headers: str) -> tuple[int, bytes]:
    def fetch() -> tuple[int, bytes]:
        request = urllib.request.Request(f"{worker.http}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    return await asyncio.to_thread(fetch)


async def test_a_node_answers_chats_without_any_gateway(shared_worker: Any, client: Any) -> None:
    worker = shared_worker
    answer = await client(worker).chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == TEXT


async def test_a_node_streams_chats_without_any_gateway(shared_worker: Any, client: Any) -> None:
    worker = shared_worker
    parts = [
        chunk.choices[0].delta.content or ""
        async for chunk in await client(worker).chat.completions.create(model=MODEL, messages=ASK, stream=True)
        if chunk.choices
    ]
    assert "".join(parts) == TEXT


async def test_requests_over_the_slots_wait_and_are_served(new_worker: Any, client: Any) -> None:
    worker = await new_worker(slots=1, flags={"chunks": 5})
    openai = client(worker)
    answers = await asyncio.gather(*(openai.chat.completions.create(model=MODEL, messages=ASK) for _ in range(5)))
    assert {answer.choices[0].message.content for answer in answers} == {"t0 t1 t2 t3 t4 "}


async def test_a_request_waits_while_the_engine_loads(new_worker: Any, client: Any) -> None:
    worker = await new_worker(ready=False, flags={"slow-start": 1.0, "chunks": 2})
    answer = await client(worker).chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == "t0 t1 "


async def test_a_client_that_leaves_frees_the_slot(
    new_worker: Any, requester: Any, wait_until: Any, client: Any
) -> None:
    worker = await new_worker(slots=1, flags={"chunks": 1000})
    stream = await client(worker).chat.completions.create(model=MODEL, messages=ASK, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await wait_until(lambda: worker.lines("request"), 1)
    assert await requester.busy("n1") == 0


async def test_an_engine_that_dies_mid_stream_ends_it_with_an_error_event(new_worker: Any, client: Any) -> None:
    worker = await new_worker(flags={"die-after": 5})
    with pytest.raises(Exception, match="engine"):
        async for _ in await client(worker).chat.completions.create(model=MODEL, messages=ASK, stream=True):
            pass


async def test_wrong_requests_are_refused_in_openais_shape(shared_worker: Any, client: Any) -> None:
    worker = shared_worker
    openai = client(worker)
    with pytest.raises(NotFoundError) as unknown:
        await openai.chat.completions.create(model="nobody", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(BadRequestError) as wrong:
        await openai.chat.completions.create(model=MODEL, messages=ASK, extra_body={"temperatur": 1})
    assert wrong.value.param == "temperatur"
    assert (await get(worker, "/nowhere"))[0] == 404
    assert (await get(worker, "/v1/chat/completions"))[0] == 405


async def test_every_answer_carries_a_request_id(new_worker: Any) -> None:
    worker = await new_worker(http={"body_bytes": 100})
    async with httpx2.AsyncClient(base_url=worker.http, timeout=5, trust_env=False) as http:
        for path in ("/livez", "/metrics", "/v1/models", "/nowhere", "/v1/chat/completions"):
            assert (await http.get(path, headers={"x-request-id": "mine-1"})).headers["x-request-id"] == "mine-1"
            assert re.fullmatch(r"[0-9a-f]{24}", (await http.get(path)).headers["x-request-id"])
        large = await http.post("/v1/chat/completions", content=b"x" * 101, headers={"x-request-id": "mine-2"})
        assert (large.status_code, large.headers["x-request-id"]) == (413, "mine-2")
        bad = await http.get("/livez", headers={"x-request-id": "no id"})
        assert re.fullmatch(r"[0-9a-f]{24}", bad.headers["x-request-id"])


async def test_pages_tell_of_the_node(shared_worker: Any, shared_requester: Any, client: Any) -> None:
    worker = shared_worker
    status, body = await get(worker, "/v1/node/inventory")
    beat = json.loads(body)
    assert status == 200
    assert (beat["node"], beat["http"], beat["engines"][0]["state"]) == ("n1", worker.http, "ready")
    assert beat["devices"][-1]["device"] == "cpu:0"
    assert (beat["host"], beat["engine_program"]) == (platform.node(), "llama-server")
    assert (bool(beat["engine_build"]), beat["accelerators"][-1]) == (True, "cpu")
    one = json.loads((await get(worker, f"/v1/models/{MODEL}"))[1])
    assert (one["id"], one["state"], len(one["engines"])) == (MODEL, "ready", 1)
    assert (await get(worker, "/v1/models/nobody"))[0] == 404
    assert [model.id async for model in await client(worker).models.list()] == [MODEL]
    assert (await get(worker, "/healthz"))[0] == (await get(worker, "/livez"))[0] == 200
    assert (await get(worker, "/readyz"))[0] == 200
    assert shared_requester.client.is_connected


async def test_ready_says_why_not(new_worker: Any, nats_server: Any, wait_until: Any, client: Any) -> None:
    worker = await new_worker()
    nats_server.kill()

    async def unready() -> Any:
        status, body = await get(worker, "/readyz")
        return status == 503 and json.loads(body)["reasons"]

    assert await wait_until(unready) == ["not connected to NATS"]
    answer = await client(worker).chat.completions.create(model=MODEL, messages=ASK)
    assert answer.choices[0].message.content == TEXT


async def test_metrics_count_each_request_once(new_worker: Any, wait_until: Any, client: Any) -> None:
    worker = await new_worker()
    for _ in range(3):
        await client(worker).chat.completions.create(model=MODEL, messages=ASK)

    async def text() -> Any:
        found = (await get(worker, "/metrics"))[1].decode()
        return f'puna_worker_requests_total{{model="{MODEL}",op="chat",outcome="ok"}} 3.0' in found and found

    found = await wait_until(text)
    assert f'puna_worker_tokens_total{{kind="completion",model="{MODEL}"}} 60.0' in found
    assert f'puna_worker_slots{{model="{MODEL}"}} 2.0' in found
    assert f'puna_worker_slots_busy{{model="{MODEL}"}} 0.0' in found
    assert "puna_worker_bus_connected 1.0" in found


async def test_keys_are_asked_for_where_there_are_any(new_worker: Any, tmp_path: Path, client: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# who may\nme:let-me-in\n")
    worker = await new_worker(http={"api_keys_file": str(keys)})
    with pytest.raises(APIStatusError) as refused:
        await client(worker, "wrong").chat.completions.create(model=MODEL, messages=ASK)
    assert refused.value.status_code == 401
    assert (await get(worker, "/v1/models"))[0] == 401
    assert (await get(worker, "/v1/models", **{"x-api-key": "let-me-in"}))[0] == 200
    assert (await get(worker, "/healthz"))[0] == 200


async def test_an_address_that_others_reach_needs_a_key(run_worker: Any, tmp_path: Path) -> None:
    process = run_worker(["--http", "0.0.0.0:0"])
    assert await asyncio.to_thread(process.wait, 20) == 2
    assert "api_keys_file" in (tmp_path / "bare.log").read_text()


async def test_a_wrong_key_of_the_file_is_named_with_its_line(run_worker: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("node: n1\nengin: {}\n")
    process = run_worker(["--config", str(config)])
    assert await asyncio.to_thread(process.wait, 20) == 2
    assert "c.yaml:2: engin: no such key; did you mean 'engine'?" in (tmp_path / "bare.log").read_text()


async def test_a_missing_engine_is_exit_69_with_what_to_do(run_worker: Any, tmp_path: Path, nats_server: Any) -> None:
    arguments = ["--nats", nats_server.url, "--model", f"m={tmp_path}/m.gguf", "--engine", str(tmp_path / "nothing")]
    process = run_worker(arguments)
    assert await asyncio.to_thread(process.wait, 20) == 69
    assert "nothing" in (tmp_path / "bare.log").read_text()


async def test_a_taken_port_is_told(run_worker: Any, tmp_path: Path, shared_worker: Any, nats_server: Any) -> None:
    worker = shared_worker
    address = worker.http.removeprefix("http://")
    process = run_worker(["--nats", nats_server.url, "--node", "n2", "--http", address, "--state-dir", str(tmp_path)])
    assert await asyncio.to_thread(process.wait, 20) == 1
    assert f"cannot listen on {address}" in (tmp_path / "bare.log").read_text()
