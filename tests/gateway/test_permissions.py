"""A gateway whose NATS user may do exactly what `Names.gateway_needs` says does all that a gateway does."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from bus.connection import Bus
from bus.permissions import USER_INFO
from bus.settings import NatsSettings
from bus.topology import ensure
from gateway.app import Gateway
from gateway.settings import GatewaySettings
from schemas.errors import PunaError
from schemas.subjects import Names
from schemas.topology import fleet
from web.keys import Keyring

COPY = {"model": "coming", "node": "n1", "state": "Downloading", "since": 1.0}


def users(names: Names) -> str:
    publish, subscribe = names.gateway_needs("*")
    allowed = {"publish": [*publish, USER_INFO], "subscribe": [*subscribe, "_INBOX.>"], "allow_responses": True}
    listed = [{"user": "all", "password": "p"}, {"user": "gateway", "password": "p", "permissions": allowed}]
    return f"authorization {{ users: {json.dumps(listed)} }}"


def fake_worker() -> Any:
    if "fakes_worker" not in sys.modules:
        path = Path(__file__).parents[1] / "fakes" / "worker.py"
        spec = importlib.util.spec_from_file_location("fakes_worker", path)
        assert spec is not None and spec.loader is not None
        sys.modules["fakes_worker"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fakes_worker"])
    return sys.modules["fakes_worker"]


@pytest.fixture
def server(new_nats_server: Any) -> Any:
    return new_nats_server(users(Names()))


@pytest.fixture
async def free(server: Any) -> AsyncIterator[Bus]:
    """A connection that may do everything, on a server whose streams stand."""
    url = server.url.replace("//", "//all:p@")
    bus = await Bus.connect(NatsSettings.model_validate({"url": url}), name="test")
    await ensure(bus, fleet(bus.names))
    yield bus
    await bus.close()


@pytest.fixture
async def http(server: Any, free: Bus) -> AsyncIterator[httpx2.AsyncClient]:
    nats = {"url": server.url.replace("//", "//gateway:p@")}
    chosen = GatewaySettings.model_validate({"listen": "127.0.0.1:0", "nats": nats, "grace_s": 0.2})
    gateway = Gateway(chosen, Keyring(()))
    host, port = await gateway.start()
    async with httpx2.AsyncClient(base_url=f"http://{host}:{port}", timeout=20, trust_env=False) as client:
        yield client
    await gateway.stop(0.2)


async def until(http: httpx2.AsyncClient, path: str, status: int) -> Any:
    async with asyncio.timeout(10):
        while (answer := await http.get(path)).status_code != status:
            await asyncio.sleep(0.02)
    return answer.json()


async def test_a_gateway_with_no_more_rights_than_it_needs_does_all_its_work(server, free, http) -> None:
    worker = await fake_worker().FakeWorker.start(server.url.replace("//", "//all:p@"))
    try:
        await until(http, "/v1/models/m", 200)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        asking = asyncio.ensure_future(http.post("/v1/chat/completions", json=body))
        job = await worker.take()
        await job.answer("hello")
        assert "hello" in (await asking).text
        await free.js_publish("$KV.puna_copies.coming.n1", json.dumps(COPY).encode())
        assert (await until(http, "/v1/models/coming", 200))["state"] == "downloading"
        assert (await http.post("/models", json={"model": "a/b:Q4"})).json()["success"]
        assert (await http.delete("/models", params={"model": "coming"})).json()["success"]
        assert (await http.post("/v1/nodes/register", json={"node": "agent"})).status_code == 200
        assert (await http.get("/v1/queue")).status_code == 200
        large = body | {"messages": [{"role": "user", "content": "x" * 2_000_000}]}
        asking = asyncio.ensure_future(http.post("/v1/chat/completions", json=large))
        job = await worker.take()
        assert job.headers["Puna-Blob"]
        await job.answer("large")
        assert "large" in (await asking).text
    finally:
        await worker.stop()
    assert "Violation" not in server.log_text, [line for line in server.log_text.splitlines() if "Violation" in line]


async def test_a_gateway_may_not_write_what_is_the_nodes_own(server, free) -> None:
    url = server.url.replace("//", "//gateway:p@")
    bus = await Bus.connect(NatsSettings.model_validate({"url": url}), name="test")
    try:
        for subject in ("$KV.puna_copies.m.n1", "$KV.puna_models.m", "$KV.puna_tasks.t", "puna.dlq.download"):
            with pytest.raises(PunaError):
                await bus.js_publish(subject, b"{}", timeout_s=0.5)
    finally:
        await bus.close()
