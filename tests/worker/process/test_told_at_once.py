"""Who follows heartbeats learns of a download that is done at once, not with the next regular one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

WANTED_S = 0.1
LATE_S = 5 * WANTED_S
"""A busy machine may take longer than what is wanted; the regular heartbeat comes each 2 s."""
ROUNDS = 5


@pytest.fixture
async def client(nats_server: Any) -> AsyncIterator[Client]:
    connection = await nats.connect(nats_server.url)
    yield connection
    await connection.close()


class Seen:
    """When the bus first told that a model is ready: by the copy's record, and by the node's heartbeat."""

    def __init__(self) -> None:
        self.by_record: dict[str, float] = {}
        self.by_heartbeat: dict[str, float] = {}
        self.changed = asyncio.Event()

    async def record(self, message: Any) -> None:
        told = json.loads(message.data or b"{}")
        if told.get("state") == "Ready":
            self._note(self.by_record, told["model"])

    async def heartbeat(self, message: Any) -> None:
        labels: dict[str, str] = json.loads(message.data or b"{}").get("labels", {})
        for name, state in labels.items():
            if name.startswith("model.") and state == "Ready":
                self._note(self.by_heartbeat, name.removeprefix("model."))

    def _note(self, where: dict[str, float], model: str) -> None:
        where.setdefault(model, time.monotonic())
        self.changed.set()

    async def both(self, model: str) -> float:
        """Seconds from the first of the two to the second."""
        async with asyncio.timeout(20):
            while not (model in self.by_record and model in self.by_heartbeat):
                self.changed.clear()
                await self.changed.wait()
        return abs(self.by_heartbeat[model] - self.by_record[model])


async def test_the_heartbeat_tells_of_a_finished_download_at_once(
    new_worker: Any, client: Client, tmp_path: Path, write_model: Callable[..., Path], wait_until: Any
) -> None:
    worker = await new_worker(ready=False, models=[], store={"reserved_disk_bytes": 0})
    await wait_until(lambda: worker.lines("store_swept"))
    seen = Seen()
    await client.subscribe("$KV.puna_copies.>", cb=seen.record)
    await client.subscribe("$KV.puna_nodes.>", cb=seen.heartbeat)
    await client.flush()
    late: list[float] = []
    for number in range(ROUNDS):
        model = f"m{number}"
        body = {"model": model, "source": f"file://{write_model(tmp_path / f'{model}.gguf')}"}
        await client.jetstream().publish("puna.task.download", json.dumps(body).encode())
        late.append(await seen.both(model))
    assert sorted(late)[ROUNDS // 2] < LATE_S, late
