"""Nodes that are told to hold the same model: real workers, one source that counts what it sends."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nats
import pytest

pytestmark = [pytest.mark.fleet]

ROOT = Path(__file__).parents[2]
MB = 1 << 20
SIZE = 20 * MB
ENDED = ("done", "failed", "dead", "cancelled")


def _fake(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fakes_{name}", ROOT / "tests" / "fakes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Herd:
    """Workers `n0`, `n1`… on one NATS, and the source."""

    def __init__(self, folder: Path, nats_url: str, client: Any, source: Any) -> None:
        self.folder = folder
        self.nats_url = nats_url
        self.client = client
        self.source = source
        self.content = os.urandom(SIZE)
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        (folder / "site" / "model.gguf").write_bytes(self.content)

    async def start(self, *nodes: str, **settings: Any) -> None:
        """Start workers, all at once, and wait until they can take tasks."""
        for node in nodes:
            self._start(node, settings)
        for node in nodes:
            line = await asyncio.to_thread(self.workers[node].stdout.readline)  # type: ignore[union-attr]
            assert line, self.log(node)

    def _start(self, node: str, settings: dict[str, Any]) -> None:
        home = self.folder / node
        home.mkdir(exist_ok=True)
        told: dict[str, Any] = {
            "node": node,
            "nats": {"url": self.nats_url},
            "state_dir": str(home / "state"),
            "http": {"listen": "127.0.0.1:0"},
            "store": {"reserved_disk_bytes": 0, "use_hub_cache": False},
            "downloads": {"startup_stagger_max_s": 0, "retry_interval_s": 0.1},
            "peers": {"lease_s": 2},
            "log": {"format": "json"},
        }
        (home / "worker.json").write_text(json.dumps(told | settings))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
        with (home / "log").open("ab") as log:
            self.workers[node] = subprocess.Popen(
                [sys.executable, "-m", "worker", "--config", str(home / "worker.json")],
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environ,
            )

    async def tell(self, *nodes: str, digest: bool = True) -> None:
        """Tell nodes to hold the model."""
        body = {"model": "m", "source": f"{self.source.origins['files']}/model.gguf", "skip_parsing": True}
        if digest:
            body["checksums"] = {"*": f"sha256:{self.sha256}"}
        for node in nodes:
            task = json.dumps(body | {"id": f"t-{node}"}).encode()
            while True:  # the first worker may still be making the stream
                try:
                    await self.client.jetstream().publish(f"puna.task.download.{node}", task)
                    break
                except nats.js.errors.NoStreamResponseError:
                    await asyncio.sleep(0.05)

    async def done(self, *nodes: str) -> None:
        """Until their tasks have ended well."""
        bucket = await self.client.jetstream().key_value("puna_tasks")
        for node in nodes:
            record = await self._ended(bucket, f"t-{node}")
            assert record["state"] == "done", (record, self.log(node))
            assert hashlib.sha256(self.blob(node).read_bytes()).hexdigest() == self.sha256

    async def _ended(self, bucket: Any, task: str) -> dict[str, Any]:
        while True:
            try:
                record = json.loads((await bucket.get(task)).value)
                if record["state"] in ENDED:
                    return record
            except nats.js.errors.KeyNotFoundError:
                pass
            await asyncio.sleep(0.05)

    def blob(self, node: str) -> Path:
        return self.folder / node / "state" / "models" / "blobs" / f"sha256-{self.sha256}"

    def bytes_of(self, node: str) -> int:
        """What its part has of the disk."""
        return sum(path.stat().st_blocks * 512 for path in (self.folder / node).rglob("partial/*/data"))

    def log(self, node: str) -> str:
        return (self.folder / node / "log").read_text()

    def events(self, node: str, event: str) -> list[dict[str, Any]]:
        """The lines of its log that tell of this."""
        lines = [json.loads(line) for line in self.log(node).splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    def leader(self) -> str:
        """The one that asks the source, "" if nobody was seen to."""
        return next((node for node in self.workers if self.events(node, "fetch_leads")), "")

    @property
    def sent(self) -> int:
        """Bytes of the model that the source has sent."""
        return self.source.seen()["sent"].get("model.gguf", 0)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "site").mkdir()
    made = _fake("started").Started("fileserver.py", tmp_path / "site")
    yield made
    made.stop()


@pytest.fixture
async def herd(nats_server: Any, tmp_path: Path, source: Any) -> AsyncIterator[Herd]:
    client = await nats.connect(nats_server.url)
    made = Herd(tmp_path, nats_server.url, client, source)
    yield made
    for worker in made.workers.values():
        worker.send_signal(signal.SIGCONT)
        worker.terminate()
    for worker in made.workers.values():
        worker.wait(30)
    await client.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool], float], Awaitable[None]]:
    async def wait(true: Callable[[], bool], within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            while not await asyncio.to_thread(true):
                await asyncio.sleep(0.02)

    return wait


FIVE = ("n0", "n1", "n2", "n3", "n4")


async def test_five_nodes_that_want_one_model_read_the_source_once(herd: Herd) -> None:
    herd.source.fault("throttle", bytes_per_s=8 * MB, match="/model.gguf")
    await herd.start(*FIVE)
    await herd.tell(*FIVE)
    async with asyncio.timeout(60):
        await herd.done(*FIVE)
    assert SIZE <= herd.sent <= 1.1 * SIZE
    assert sum(bool(herd.events(node, "fetch_leads")) for node in FIVE) == 1


async def test_after_a_leader_is_killed_only_what_it_had_not_given_is_read_again(
    herd: Herd, until: Callable[..., Awaitable[None]]
) -> None:
    herd.source.fault("throttle", bytes_per_s=6 * MB, match="/model.gguf")
    three = FIVE[:3]
    await herd.start(*three)
    await herd.tell(*three)
    await until(lambda: herd.leader() != "" and herd.sent >= SIZE // 2)
    leader = herd.leader()
    herd.workers[leader].kill()
    left = [node for node in three if node != leader]
    given = max(herd.bytes_of(node) for node in left)
    lost = herd.sent - given
    async with asyncio.timeout(90):
        await herd.done(*left)
    assert given >= SIZE // 4
    assert herd.sent <= 1.1 * SIZE + lost
    assert len([node for node in left if herd.events(node, "fetch_leads")]) == 1


async def test_a_leader_that_freezes_is_followed_by_another_and_yields_when_it_wakes(
    herd: Herd, until: Callable[..., Awaitable[None]]
) -> None:
    herd.source.fault("throttle", bytes_per_s=4 * MB, match="/model.gguf")
    two = FIVE[:2]
    await herd.start(*two)
    await herd.tell(*two)
    await until(lambda: herd.leader() != "" and herd.sent >= 4 * MB)
    frozen = herd.leader()
    herd.workers[frozen].send_signal(signal.SIGSTOP)
    [left] = [node for node in two if node != frozen]
    async with asyncio.timeout(90):
        await until(lambda: bool(herd.events(left, "fetch_leads")), 60)
        herd.workers[frozen].send_signal(signal.SIGCONT)
        await herd.done(*two)
    assert herd.sent <= 1.5 * SIZE


async def test_the_only_other_copy_being_rotten_everything_comes_from_the_source_and_it_is_said(herd: Herd) -> None:
    await herd.start("n0")
    await herd.tell("n0")
    async with asyncio.timeout(60):
        await herd.done("n0")
        rotten = herd.blob("n0")
        rotten.chmod(0o644)
        with rotten.open("r+b") as file:
            file.write(bytes([herd.content[0] ^ 1]))
        await herd.start("n1")
        await herd.tell("n1")
        await herd.done("n1")
    assert [(line["peer"], line["chunks"]) for line in herd.events("n1", "peer_lied")] == [("n0", 1)]
    assert herd.sent == 2 * SIZE
