"""Nodes that are told to hold the same model: real workers, one source that counts what it sends.

The tests share one herd of workers: each has a model of its own, and looks at what is told of that one. A worker that a
test has killed is started again for the next one that needs so many.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nats
import pytest

pytestmark = [pytest.mark.fleet]

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
MB = 1 << 20
SIZE = 16 * MB
ENDED = ("done", "failed", "dead", "cancelled")


def _fake(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fakes_{name}", ROOT / "tests" / "fakes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Herd:
    """Workers `n0`, which has an engine, `n1`… on one NATS, and the source."""

    def __init__(self, folder: Path, nats_url: str, source: Any) -> None:
        self.folder = folder
        self.nats_url = nats_url
        self.source = source
        self.urls: dict[str, str] = {}
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def need(self, count: int) -> list[str]:
        """So many nodes, started if need be, all at once, that can take tasks."""
        nodes = [f"n{number}" for number in range(count)]
        new = [node for node in nodes if node not in self._workers]
        for node in new:
            self._start(node)
        for node in new:
            line = self._workers[node].stdout.readline()  # type: ignore[union-attr]
            assert line, self.log(node)
            self.urls[node] = json.loads(line)["http"]
        return nodes

    def _start(self, node: str) -> None:
        home = self.folder / node
        home.mkdir(exist_ok=True)
        told: dict[str, Any] = {
            "node": node,
            "nats": {"url": self.nats_url},
            "state_dir": str(home / "state"),
            "http": {"listen": "127.0.0.1:0"},
            "accelerators": {"allow": ["cpu"]},
            "store": {"reserved_disk_bytes": 0, "use_hub_cache": False},
            "downloads": {"startup_stagger_max_s": 0, "retry_interval_s": 0.1},
            "peers": {"lease_s": 2},
            "log": {"format": "json"},
        }
        told |= {"engine": {"path": str(ENGINE)}} if node == "n0" else {}
        (home / "worker.json").write_text(json.dumps(told))
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
        argv = [sys.executable, "-m", "worker", "--config", str(home / "worker.json")]
        with (home / "log").open("ab") as log:
            self._workers[node] = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, env=environ)

    def kill(self, node: str) -> None:
        worker = self._workers.pop(node)
        worker.kill()
        worker.wait()

    def signal(self, node: str, number: signal.Signals) -> None:
        self._workers[node].send_signal(number)

    def stop(self) -> None:
        for worker in self._workers.values():
            worker.send_signal(signal.SIGCONT)
            worker.terminate()
        for worker in self._workers.values():
            worker.wait(30)

    def log(self, node: str) -> str:
        return (self.folder / node / "log").read_text()

    def counted(self, node: str, series: str) -> float:
        """A value of its metrics."""
        with urllib.request.urlopen(f"{self.urls[node]}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{series} "))


class Model:
    """A file of random bytes at the source, and what the nodes do about it."""

    def __init__(self, herd: Herd, client: Any, name: str) -> None:
        self.herd = herd
        self.client = client
        self.name = name
        self.content = os.urandom(SIZE)
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        (herd.folder / "site" / f"{name}.gguf").write_bytes(self.content)

    def throttle(self, bytes_per_s: int) -> None:
        self.herd.source.fault("throttle", bytes_per_s=bytes_per_s, match=f"/{self.name}.gguf")

    async def tell(self, *nodes: str, **more: Any) -> None:
        """Tell nodes to hold it."""
        source = f"{self.herd.source.origins['files']}/{self.name}.gguf"
        body = {"model": self.name, "source": source, "skip_parsing": True}
        body |= {"checksums": {"*": f"sha256:{self.sha256}"}} | more
        for node in nodes:
            task = json.dumps(body | {"id": f"t-{self.name}-{node}"}).encode()
            await self.client.jetstream().publish(f"puna.task.download.{node}", task)

    async def ended(self, node: str) -> dict[str, Any]:
        """The record of the node's task, when that has ended."""
        bucket = await self.client.jetstream().key_value("puna_tasks")
        while True:
            try:
                record = json.loads((await bucket.get(f"t-{self.name}-{node}")).value)
                if record["state"] in ENDED:
                    return record
            except nats.js.errors.KeyNotFoundError:
                pass
            await asyncio.sleep(0.05)

    async def done(self, *nodes: str) -> None:
        """Until they have it."""
        for node in nodes:
            record = await self.ended(node)
            assert record["state"] == "done", (record, self.herd.log(node))
            assert hashlib.sha256(self.blob(node).read_bytes()).hexdigest() == self.sha256

    def blob(self, node: str) -> Path:
        return self.herd.folder / node / "state" / "models" / "blobs" / f"sha256-{self.sha256}"

    def bytes_of(self, node: str) -> int:
        """What its part has of the disk."""
        part = self.herd.folder / node / "state" / "models" / "partial" / f"sha256-{self.sha256}" / "data"
        return part.stat().st_blocks * 512 if part.exists() else 0

    def events(self, node: str, event: str) -> list[dict[str, Any]]:
        """The lines of a node's log that tell of this."""
        lines = [json.loads(line) for line in self.herd.log(node).splitlines() if f"{self.name}.gguf" in line]
        return [line for line in lines if line.get("event") == event]

    def leader(self, *nodes: str) -> str:
        """The one that asks the source, "" if nobody was seen to."""
        return next((node for node in nodes if self.events(node, "fetch_leads")), "")

    @property
    def sent(self) -> int:
        """Bytes that the source has sent of it."""
        return self.herd.source.seen()["sent"].get(f"{self.name}.gguf", 0)


@pytest.fixture(scope="module")
def herd(tmp_path_factory: pytest.TempPathFactory, fake: Callable[[str], ModuleType]) -> Iterator[Herd]:
    folder = tmp_path_factory.mktemp("herd")
    (folder / "site").mkdir()
    server = fake("natsd").NatsServer(folder / "nats")
    server.start()
    source = _fake("started").Started("fileserver.py", folder / "site")
    made = Herd(folder, server.url, source)
    made.need(5)
    yield made
    made.stop()
    source.stop()
    server.kill()


@pytest.fixture
async def model(herd: Herd, request: pytest.FixtureRequest) -> AsyncIterator[Model]:
    client = await nats.connect(herd.nats_url)
    yield Model(herd, client, f"m{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}")
    herd.source.reset()
    await client.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool], float], Awaitable[None]]:
    async def wait(true: Callable[[], bool], within_s: float = 30.0) -> None:
        async with asyncio.timeout(within_s):
            while not await asyncio.to_thread(true):
                await asyncio.sleep(0.02)

    return wait


async def test_five_nodes_that_want_one_model_read_the_source_once(herd: Herd, model: Model) -> None:
    five = herd.need(5)
    received = [herd.counted(node, "puna_peer_bytes_received_total") for node in five]
    model.throttle(8 * MB)
    await model.tell(*five)
    async with asyncio.timeout(60):
        await model.done(*five)
    assert SIZE <= model.sent <= 1.1 * SIZE
    assert sum(bool(model.events(node, "fetch_leads")) for node in five) == 1
    leader = model.leader(*five)
    followers = [number for number, node in enumerate(five) if node != leader]

    def came() -> float:
        return sum(herd.counted(five[each], "puna_peer_bytes_received_total") - received[each] for each in followers)

    async with asyncio.timeout(10):
        while came() < 4 * SIZE:  # metrics are made once a second
            await asyncio.sleep(0.1)
    assert herd.counted(leader, "puna_peer_leads_total") >= 1
    assert herd.counted(leader, "puna_peer_bytes_sent_total") >= SIZE
    assert herd.counted(leader, "puna_peer_uploads_active") == 0


async def test_a_leader_that_freezes_is_followed_by_another_and_yields_when_it_wakes(
    herd: Herd, model: Model, until: Callable[..., Awaitable[None]]
) -> None:
    two = herd.need(2)
    model.throttle(6 * MB)
    await model.tell(*two)
    await until(lambda: model.leader(*two) != "" and model.sent >= 4 * MB)
    frozen = model.leader(*two)
    herd.signal(frozen, signal.SIGSTOP)
    [left] = [node for node in two if node != frozen]
    async with asyncio.timeout(90):
        await until(lambda: bool(model.events(left, "fetch_leads")), 60)
        herd.signal(frozen, signal.SIGCONT)
        await model.done(*two)
    assert model.sent <= 1.5 * SIZE


async def test_the_only_other_copy_being_rotten_everything_comes_from_the_source_and_it_is_said(
    herd: Herd, model: Model
) -> None:
    one, two = herd.need(2)
    await model.tell(one)
    async with asyncio.timeout(60):
        await model.done(one)
        rotten = model.blob(one)
        rotten.chmod(0o644)
        with rotten.open("r+b") as file:
            file.write(bytes([model.content[0] ^ 1]))
        await model.tell(two)
        await model.done(two)
    assert [(line["peer"], line["chunks"]) for line in model.events(two, "peer_lied")] == [(one, 1)]
    assert model.sent == 2 * SIZE


async def _asked(client: Any, node: str, verb: str, **body: Any) -> Any:
    answer = await client.request(f"puna.node.{node}.{verb}", json.dumps(body).encode(), timeout=10)
    assert not answer.headers, answer.headers
    return json.loads(answer.data)


async def _engine_of(client: Any, node: str, model: str) -> dict[str, Any]:
    """The one engine of a model, when it is ready."""
    while True:
        beat = await _asked(client, node, "inventory")
        for engine in beat["engines"]:
            if engine["model"] == model and engine["state"] == "ready":
                return engine
        await asyncio.sleep(0.05)


async def test_the_copy_of_a_named_node_comes_from_it_and_its_engine_goes_on(
    herd: Herd, model: Model, write_model: Callable[..., Path]
) -> None:
    one, two = herd.need(2)
    path = write_model(herd.folder / "own.gguf", {"general.description": "x" * (3 * MB)})
    model.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    async with asyncio.timeout(60):
        await model.tell(one, source=path.as_uri(), skip_parsing=False, checksums={})
        await model.done(one)
        await _asked(model.client, one, "load", model=model.name)
        engine = await _engine_of(model.client, one, model.name)
        sent = herd.counted(one, "puna_peer_bytes_sent_total")
        await model.tell(two, source=f"peer://{one}/{model.name}", skip_parsing=False, checksums={})
        await model.done(two)
        after = await _engine_of(model.client, one, model.name)
        assert (after["engine"], after["since"]) == (engine["engine"], engine["since"])
        bucket = await model.client.jetstream().key_value("puna_copies")
        record = json.loads((await bucket.get(f"{model.name}.{two}")).value)
        assert (record["state"], record["source"]) == ("Ready", f"peer://{one}/{model.name}")
        assert record["config"]["architecture"] == "llama"
        while herd.counted(one, "puna_peer_bytes_sent_total") < sent + path.stat().st_size:
            await asyncio.sleep(0.1)


async def test_a_copy_of_a_node_that_is_not_there_or_has_none_fails_and_says_which(herd: Herd, model: Model) -> None:
    one, two = herd.need(2)
    async with asyncio.timeout(60):
        await model.tell(two, source="peer://nobody/m", checksums={})
        record = await model.ended(two)
        assert (record["state"], "there is no node nobody now" in record["error"]) == ("failed", True), record
        await model.tell(one, source=f"peer://{two}/{model.name}", checksums={})
        record = await model.ended(one)
        assert (record["state"], f"node {two} has no copy" in record["error"]) == ("failed", True), record


async def test_after_a_leader_is_killed_only_what_it_had_not_given_is_read_again(
    herd: Herd, model: Model, until: Callable[..., Awaitable[None]]
) -> None:
    three = herd.need(3)
    model.throttle(6 * MB)
    await model.tell(*three)
    await until(lambda: model.leader(*three) != "" and model.sent >= SIZE // 2)
    leader = model.leader(*three)
    herd.kill(leader)
    left = [node for node in three if node != leader]
    given = min(model.bytes_of(node) for node in left)  # on a busy machine the next leader may not hear of the other
    sent = 0
    while sent != model.sent:  # the source sees the end of a connection a little later
        sent = model.sent
        await asyncio.sleep(0.1)
    lost = sent - given
    async with asyncio.timeout(90):
        await model.done(*left)
    assert given >= SIZE // 4
    assert model.sent <= SIZE + 2 * MB + lost
    assert len([node for node in left if model.events(node, "fetch_leads")]) == 1
