"""Tasks over real workers and a real nats-server, sent by a plain client; a source that counts what it sends.

The server hands a task out again when its worker has said nothing for `ack_wait`, 30 s. Where a test needs that sooner,
it changes the consumer for a moment, as an operator could.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.errors import KeyNotFoundError, NotFoundError

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
MB = 1 << 20
SIZE = 8 * MB
ENDED = ("done", "failed", "cancelled", "dead")


class Yard:
    """Workers, the source and a plain NATS client."""

    def __init__(self, folder: Path, url: str, client: Any, source: Any) -> None:
        self.folder = folder
        self.url = url
        self.client = client
        self.js = client.jetstream()
        self.source = source
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.content = os.urandom(SIZE)
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        (folder / "site" / "model.gguf").write_bytes(self.content)

    # -- processes
    async def start(self, *nodes: str) -> None:
        """Workers that can take tasks."""
        for node in nodes:
            self._start(node)
        for node in nodes:
            assert await asyncio.to_thread(self.workers[node].stdout.readline), self.log(node)  # type: ignore[union-attr]
        async with asyncio.timeout(20):  # a core message is lost while there is no stream that takes it
            while not await self._stream_stands():
                await asyncio.sleep(0.02)

    async def _stream_stands(self) -> bool:
        try:
            return bool(await self.js.stream_info("PUNA_TASKS"))
        except NotFoundError:
            return False

    def _start(self, node: str) -> None:
        told: dict[str, Any] = {
            "node": node,
            "nats": {"url": self.url},
            "state_dir": str(self.folder / node),
            "http": {"listen": "127.0.0.1:0"},
            "engine": {"path": str(ENGINE)},
            "accelerators": {"allow": ["cpu"]},
            "store": {"reserved_disk_bytes": 0, "use_hub_cache": False},
            "downloads": {"startup_stagger_max_s": 0, "retry_interval_s": 0.1},
            "desired": {"tombstone_s": 0.2},
            "peers": {"lease_s": 2},
            "log": {"format": "json"},
        }
        config = self.folder / f"{node}.json"
        config.write_text(json.dumps(told))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
        with (self.folder / f"{node}.log").open("ab") as log:
            self.workers[node] = subprocess.Popen(
                [sys.executable, "-m", "worker", "--config", str(config)],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environ,
            )

    def signal(self, node: str, number: int) -> None:
        self.workers[node].send_signal(number)

    def kill(self, node: str) -> None:
        self.workers[node].kill()
        self.workers[node].wait()

    def log(self, node: str) -> str:
        return (self.folder / f"{node}.log").read_text()

    def events(self, node: str, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log(node).rpartition("\n")[0].splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    # -- what an operator types
    async def pub(self, subject: str, body: dict[str, Any] | str) -> None:
        """`nats pub SUBJECT BODY`: one core message, nothing else."""
        payload = body if isinstance(body, str) else json.dumps(body)
        await self.client.publish(subject, payload.encode())
        await self.client.flush()

    async def download(self, model: str, task: str, node: str | None = None, file: str = "model.gguf") -> None:
        body = {"model": model, "source": self.url_of(file), "id": task, "skip_parsing": True}
        await self.pub(f"puna.task.download{f'.{node}' if node else ''}", body)

    def url_of(self, file: str) -> str:
        return f"{self.source.origins['files']}/{file}"

    async def handed_out_after(self, seconds: float) -> None:
        """The server's `ack_wait` of the tasks for any node, from now on."""
        info = await self.js.consumer_info("PUNA_TASKS", "tasks_any")
        body = {
            "stream_name": "PUNA_TASKS",
            "action": "update",
            "config": info.config.as_dict() | {"ack_wait": int(seconds * 1e9)},
        }
        subject = "$JS.API.CONSUMER.CREATE.PUNA_TASKS.tasks_any.puna.task.*"
        answer = json.loads((await self.client.request(subject, json.dumps(body).encode(), timeout=5)).data)
        assert "error" not in answer, answer

    # -- what there is
    async def record(self, task: str) -> dict[str, Any]:
        try:
            return json.loads((await (await self.js.key_value("puna_tasks")).get(task)).value or b"{}")
        except (KeyNotFoundError, NotFoundError):
            return {}

    async def until_record(
        self, task: str, true: Callable[[dict[str, Any]], Any], limit_s: float = 60
    ) -> dict[str, Any]:
        end = time.monotonic() + limit_s
        while not true(record := await self.record(task)):
            assert time.monotonic() < end, (record, *map(self.log, self.workers))
            await asyncio.sleep(0.02)
        return record

    async def ended(self, task: str, state: str = "done") -> dict[str, Any]:
        record = await self.until_record(task, lambda record: record.get("state") in ENDED)
        assert record["state"] == state, record
        return record

    async def queue_is_empty(self) -> None:
        end = time.monotonic() + 20
        while (await self.js.stream_info("PUNA_TASKS")).state.messages:
            assert time.monotonic() < end, [self.log(node) for node in self.workers]
            await asyncio.sleep(0.02)

    def has(self, node: str, model: str) -> bool:
        """Whether a whole copy is on its disk."""
        return (self.folder / node / "models" / "models" / model / "current" / "manifest.json").exists()

    def whole(self, node: str, model: str) -> bool:
        """The same, byte for byte."""
        file = self.folder / node / "models" / "models" / model / "current" / "model.gguf"
        return hashlib.sha256(file.read_bytes()).hexdigest() == self.sha256

    async def until_sent(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.sent < count:
                await asyncio.sleep(0.01)

    @property
    def sent(self) -> int:
        """Bytes of the model that the source has sent."""
        return self.source.seen()["sent"].get("model.gguf", 0)

    def slow(self, bytes_per_s: int) -> None:
        self.source.fault("throttle", bytes_per_s=bytes_per_s, match="/model.gguf")


@pytest.fixture
def source(tmp_path: Path, fake: Callable[[str], Any]) -> Iterator[Any]:
    (tmp_path / "site").mkdir()
    made = fake("started").Started("fileserver.py", tmp_path / "site")
    yield made
    made.stop()


@pytest.fixture
async def yard(nats_server: Any, tmp_path: Path, source: Any) -> AsyncIterator[Yard]:
    client = await nats.connect(nats_server.url)
    made = Yard(tmp_path, nats_server.url, client, source)
    yield made
    for worker in made.workers.values():
        worker.send_signal(signal.SIGCONT)
        worker.terminate()
    for worker in made.workers.values():
        worker.wait(30)
    await client.close()


async def test_the_same_task_twice_and_two_tasks_for_one_blob_are_one_transfer(yard: Yard) -> None:
    yard.slow(8 * MB)
    await yard.start("n1")
    for _ in range(2):
        await yard.download("a", "t-a")
    await yard.download("b", "t-b")
    for task in ("t-a", "t-b"):
        assert (await yard.ended(task))["epoch"] == 1
    await yard.queue_is_empty()
    assert yard.whole("n1", "a") and yard.whole("n1", "b")
    assert yard.sent == SIZE
    assert sorted(line["task"] for line in yard.events("n1", "task_running")) == ["t-a", "t-b"]


async def test_a_task_that_is_handed_out_again_while_its_worker_is_frozen_is_one_transfer(yard: Yard) -> None:
    yard.slow(4 * MB)
    await yard.start("n1")
    await yard.download("m", "t")
    await yard.until_sent(SIZE // 4)
    yard.signal("n1", signal.SIGSTOP)
    await yard.handed_out_after(0.5)
    async with asyncio.timeout(20):
        while not (await yard.js.consumer_info("PUNA_TASKS", "tasks_any")).num_redelivered:
            await asyncio.sleep(0.05)
    await yard.handed_out_after(30)
    yard.signal("n1", signal.SIGCONT)
    record = await yard.ended("t")
    await yard.queue_is_empty()
    assert (record["epoch"], record["attempts"]) == (1, 1)
    assert yard.whole("n1", "m") and yard.sent <= 1.01 * SIZE + MB  # what the freeze made the connection lose
    assert len(yard.events("n1", "task_running")) == len(yard.events("n1", "task_ended")) == 1


async def test_a_worker_that_wakes_after_another_took_its_task_over_finishes_nothing(yard: Yard) -> None:
    yard.slow(2 * MB)
    await yard.start("n1", "n2")
    await yard.download("m", "t")
    first = (await yard.until_record("t", lambda record: record.get("state") == "running"))["node"]
    [other] = {"n1", "n2"} - {first}
    await yard.until_sent(SIZE // 8)
    yard.signal(first, signal.SIGSTOP)
    await yard.handed_out_after(0.5)
    await yard.until_record("t", lambda record: record.get("node") == other)
    await yard.handed_out_after(30)
    yard.source.reset()
    yard.signal(first, signal.SIGCONT)
    record = await yard.ended("t")
    await yard.queue_is_empty()
    assert (record["node"], record["epoch"]) == (other, 2)
    assert yard.whole(other, "m") and not yard.has(first, "m")
    assert len(yard.events(first, "task_lost")) == 1 and not yard.events(first, "task_ended")
    assert len(yard.events(other, "task_ended")) == 1
    assert yard.sent <= 1.25 * SIZE  # since it woke: the whole for the other, and next to nothing for itself


async def test_a_worker_that_was_killed_goes_on_as_soon_as_it_is_back_and_asks_only_for_the_rest(yard: Yard) -> None:
    yard.slow(4 * MB)
    await yard.start("n1")
    await yard.download("m", "t")
    for part in (4, 2):
        await yard.until_sent(SIZE // part)
        yard.kill("n1")
        await yard.start("n1")
    record = await yard.ended("t")  # within `ack_wait` of the first kill, and long before that of the second
    await yard.queue_is_empty()
    assert record["node"] == "n1" and len(yard.events("n1", "task_resumed")) == 2
    assert yard.whole("n1", "m") and yard.sent <= 1.25 * SIZE
    assert len(yard.events("n1", "task_ended")) == 1


async def test_each_task_of_the_wires_page_can_be_typed_by_hand(yard: Yard, write_model: Callable[..., Path]) -> None:
    write_model(yard.folder / "site" / "small.gguf", {"general.name": "small", "x": "y" * 20_000})
    sent = lambda: yard.source.seen()["sent"].get("small.gguf", 0)  # noqa: E731
    size = (yard.folder / "site" / "small.gguf").stat().st_size
    await yard.start("n1")
    where = f'"model":"m","source":"{yard.url_of("small.gguf")}"'

    await yard.pub("puna.task.download", f'{{{where},"id":"d1"}}')
    assert (await yard.ended("d1"))["node"] == "n1" and yard.has("n1", "m") and sent() == size
    await yard.pub("puna.task.verify", '{"model":"m","id":"v1"}')
    assert (await yard.ended("v1"))["reason"] == "every file is as it should be"
    await yard.pub("puna.task.load", '{"model":"m","id":"l1"}')
    await yard.ended("l1")
    assert await engine_states(yard) == {"m": "ready"}
    await yard.pub("puna.task.unload.n1", '{"model":"m","id":"u1"}')
    assert "stopped engine-" in (await yard.ended("u1"))["reason"]
    await yard.pub("puna.task.download_override", f'{{{where},"id":"o1"}}')
    await yard.ended("o1")
    assert sent() == 2 * size
    await yard.pub("puna.task.delete", '{"model":"m","id":"x1"}')
    await yard.ended("x1")
    async with asyncio.timeout(20):
        while yard.has("n1", "m"):
            await asyncio.sleep(0.02)

    yard.slow(MB)
    await yard.download("big", "d2")
    await yard.until_sent(MB // 4)
    await yard.pub("puna.task.cancel", '{"task":"d2","id":"c1"}')
    assert (await yard.ended("c1"))["reason"] == "n1 was told to stop"
    await yard.ended("d2", "cancelled")
    await yard.queue_is_empty()
    assert not yard.has("n1", "big")


async def engine_states(yard: Yard) -> dict[str, str]:
    """By model, as the node tells."""
    answer = json.loads((await yard.client.request("puna.node.n1.status", b"", timeout=5)).data)
    return {engine["model"]: engine["state"] for engine in answer["engines"]}
