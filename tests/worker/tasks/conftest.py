"""Nodes that take tasks, on a real nats-server, with the queue, the records and the dead letters to look into."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bus.connection import Bus
from bus.errors import JetStreamError
from bus.kv import Bucket
from bus.settings import NatsSettings
from bus.topology import ensure
from schemas.errors import PunaError
from schemas.task import DeadTask, TaskRecord
from schemas.topology import fleet
from worker.tasks import decide

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "tests" / "fakes" / "taskworker.py"


def _program() -> ModuleType:
    known = sys.modules.get("fakes_taskworker")
    if known is not None:
        return known
    spec = spec_from_file_location("fakes_taskworker", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["fakes_taskworker"] = module
    spec.loader.exec_module(module)
    return module


async def until(true: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """The first true answer; awaited if it can be."""
    end = time.monotonic() + timeout_s
    while True:
        found = true()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < end, f"not true after {timeout_s} s"
        await asyncio.sleep(0.01)


class Site:
    """What a test sees of the fleet's tasks."""

    def __init__(self, bus: Bus, folder: Path) -> None:
        self.bus = bus
        self.folder = folder
        self.records = Bucket(bus, bus.names.bucket_tasks)

    async def publish(self, op: str, body: Any, node: str | None = None) -> int:
        """As an operator does it; the sequence."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return (await self.bus.js_publish(self.bus.names.task(op, node), raw)).sequence

    async def download(self, model: str, node: str | None = None, **more: Any) -> None:
        await self.publish(
            "download", {"model": model, "source": f"file:///{model}.gguf", "id": f"t-{model}"} | more, node
        )

    async def record(self, task: str) -> TaskRecord | None:
        entry = await self.records.get(task)
        return None if entry is None else TaskRecord.model_validate_json(entry.value)

    async def until_state(self, task: str, *states: str, timeout_s: float = 10.0) -> TaskRecord:
        async def there() -> TaskRecord | None:
            try:
                found = await self.record(task)
            except PunaError:
                return None
            return found if found is not None and found.state in states else None

        return await until(there, timeout_s)

    async def queued(self) -> int:
        """Messages in the tasks stream."""
        return (await self.bus.js_api(f"STREAM.INFO.{self.bus.names.stream_tasks}"))["state"]["messages"]

    async def until_queued(self, count: int) -> None:
        """So many messages are in the stream."""

        async def so_many() -> bool:
            return await self.queued() == count

        await until(so_many)

    async def until_empty(self, timeout_s: float = 10.0) -> None:
        async def empty() -> bool:
            return await self.queued() == 0

        await until(empty, timeout_s)

    async def letters(self) -> list[DeadTask]:
        """All dead letters."""
        found: list[DeadTask] = []
        sequence = 1
        while True:
            body = {"seq": sequence, "next_by_subj": self.bus.names.dead_all()}
            try:
                message = (await self.bus.js_api(f"STREAM.MSG.GET.{self.bus.names.stream_dead}", body))["message"]
            except JetStreamError:
                return found
            found.append(DeadTask.model_validate_json(base64.b64decode(message["data"])))
            sequence = int(message["seq"]) + 1

    def done(self) -> list[str]:
        """What nodes did, in order."""
        log = self.folder / "done.log"
        return log.read_text().splitlines() if log.exists() else []

    async def until_done(self, *lines: str, timeout_s: float = 10.0) -> None:
        await until(lambda: set(lines) <= set(self.done()), timeout_s)

    async def until_lines(self, count: int) -> None:
        """So much was done."""
        await until(lambda: len(self.done()) >= count)

    async def until_progress(self, task: str, *, after_s: float) -> None:
        """Its record tells progress that was made so long after now."""
        end = time.time() + after_s

        async def later() -> bool:
            try:
                entry = await self.records.get(task)
            except PunaError:
                return False
            return entry is not None and entry.created_at > end and b'"running"' in entry.value

        await until(later, after_s + 10)

    def go(self) -> None:
        """Let what holds end."""
        (self.folder / "go").touch()


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[Any]]:
    """`await wait_until(true, timeout_s=10)`."""
    return until


@pytest.fixture
async def connect(nats_server: Any) -> AsyncIterator[Callable[..., Awaitable[Bus]]]:
    """Factory: another bus."""
    made: list[Bus] = []

    async def make(name: str = "test") -> Bus:
        made.append(await Bus.connect(NatsSettings(url=nats_server.url), name=name))
        return made[-1]

    yield make
    for bus in made:
        await bus.close()


@pytest.fixture
async def site(connect: Any, tmp_path: Path) -> Site:
    """The fleet's streams and buckets, made."""
    bus = await connect("site")
    await ensure(bus, fleet(bus.names))
    return Site(bus, tmp_path)


@pytest.fixture
async def new_node(connect: Any, site: Site) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Factory: `await new_node("n1", capacity=2)` → a started node in this process."""
    made: list[Any] = []

    async def make(node: str = "n1", **options: Any) -> Any:
        one = _program().Node(await connect(node), node, site.folder, **options)
        made.append(one)
        await one.start()
        return one

    yield make
    for one in made:
        await one.stop()


class Process:
    """A node in a process of its own."""

    def __init__(self, url: str, node: str, folder: Path, *more: str) -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (folder / f"{node}.err").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), url, node, str(folder), *more],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
            )

    async def started(self) -> None:
        assert self.process.stdout is not None
        assert await asyncio.to_thread(self.process.stdout.readline)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def new_process(nats_server: Any, tmp_path: Path) -> Iterator[Callable[..., Awaitable[Process]]]:
    """Factory: `await new_process("n1", ack_wait_s=2)` → a node in a process of its own, started."""
    made: list[Process] = []

    async def make(node: str, *, ack_wait_s: float = 2) -> Process:
        made.append(Process(nats_server.url, node, tmp_path, str(ack_wait_s)))
        await made[-1].started()
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(decide, "RETRY_AFTER_S", (0.02,))
    monkeypatch.setattr(decide, "DECLINED_DELAY_S", 0.02)
    monkeypatch.setattr(decide, "PASSED_ON_DELAY_S", 0.02)
    monkeypatch.setattr(decide, "BUSY_DELAY_S", 0.05)
