"""A gateway in this process, a real nats-server, and workers that do what a test tells them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.app import Gateway
from gateway.settings import GatewaySettings
from web.keys import Keyring, parse_key

CHAT = "/v1/chat/completions"


@dataclass
class Running:
    """A started gateway and a client of it."""

    gateway: Gateway
    url: str
    http: httpx2.AsyncClient

    async def until_seen(self, model: str = "m") -> None:
        """Until the gateway knows the model."""
        async with asyncio.timeout(5):
            while (await self.http.get(f"/v1/models/{model}")).status_code != 200:
                await asyncio.sleep(0.01)

    async def until_nodes(self, *nodes: str) -> None:
        """Until the gateway knows these nodes."""
        await self.until(lambda page: {one["id"] for one in page["data"]} >= set(nodes), "/v1/nodes")

    async def until(self, true: Callable[[Any], bool], path: str) -> None:
        """Until the page is so."""
        async with asyncio.timeout(5):
            while not true((await self.http.get(path)).json()):
                await asyncio.sleep(0.01)

    def chat(self, **fields: Any) -> dict[str, Any]:
        return {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields

    def ask(self, headers: dict[str, str] | None = None, **fields: Any) -> asyncio.Task[httpx2.Response]:
        """A chat request under way; the task gives the whole response."""
        work = self.http.post(CHAT, json=self.chat(**fields), headers=headers)
        return asyncio.create_task(work)  # type: ignore[arg-type]


@pytest.fixture
def nats_server(new_nats_server: Callable[..., Any], tmp_path: Path) -> Any:
    """A server with room for the fleet's whole topology; only what is used is taken."""
    return new_nats_server(f'jetstream {{ store_dir: "{tmp_path}/js", max_mem: 8G, max_file: 8G }}')


@pytest.fixture
async def start_gateway(nats_server: Any) -> AsyncIterator[Callable[..., Awaitable[Running]]]:
    """Factory: `await start_gateway(keys=["name:key"], **settings)`. All requests go into the line, unless `direct`."""
    running: list[Running] = []

    async def start(keys: tuple[str, ...] = (), **settings: Any) -> Running:
        nats = {"url": nats_server.url} | settings.pop("nats", {})
        chosen = GatewaySettings.model_validate(
            {"listen": "127.0.0.1:0", "nats": nats, "grace_s": 0.2, "log_level": "debug", "direct": False} | settings
        )
        gateway = Gateway(chosen, Keyring((parse_key(key, "test") for key in keys), admins=chosen.admin_keys))
        host, port = await gateway.start()
        url = f"http://{host}:{port}"
        http = httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False)
        running.append(Running(gateway, url, http))
        return running[-1]

    yield start
    for one in running:
        await one.http.aclose()
        await one.gateway.stop(0.2)


@pytest.fixture
async def gateway(start_gateway: Callable[..., Awaitable[Running]]) -> Running:
    """One gateway with the defaults."""
    return await start_gateway()


@pytest.fixture
async def start_worker(nats_server: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Factory: `await start_worker(node="n1", model="m", …)` once a gateway has made the topology."""
    started: list[Any] = []
    fake = sys.modules["fakes_worker"] if "fakes_worker" in sys.modules else _fake()

    async def start(**options: Any) -> Any:
        worker = await fake.FakeWorker.start(nats_server.url, **options)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        await worker.stop()


def _fake() -> Any:
    import importlib.util

    path = Path(__file__).parents[1] / "fakes" / "worker.py"
    spec = importlib.util.spec_from_file_location("fakes_worker", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fakes_worker"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def worker(gateway: Running, start_worker: Callable[..., Awaitable[Any]]) -> Any:
    """One worker that serves model `m`, seen by the gateway."""
    one = await start_worker()
    await gateway.until_seen()
    return one
