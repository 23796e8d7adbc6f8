"""Whole workers as processes: the fake engine, a real nats-server, and a requester on plain nats-py."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import psutil
import pytest
import yaml
from nats.aio.client import Client
from nats.aio.msg import Msg

ROOT = Path(__file__).resolve().parents[3]
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
MODEL = "org/fake-1.5:Q4"
TOKEN = "org=2Ffake-1=2E5=3AQ4"
_NAMES = itertools.count()
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "count"}]}


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """The first true answer of `condition`, which may be async."""
    end = time.monotonic() + timeout_s
    while True:
        found = condition()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < end, f"{condition} is not true after {timeout_s} s"
        await asyncio.sleep(0.01)


@dataclass
class Worker:
    """One `python -m worker`."""

    node: str
    process: subprocess.Popen[bytes]
    log: Path
    facts: dict[str, Any]

    @property
    def http(self) -> str:
        return self.facts["http"]

    def lines(self, event: str) -> list[dict[str, Any]]:
        """What it logged under this event."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        rows = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
        return [row for row in rows if row.get("event") == event]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, timeout_s: float = 10.0) -> int:
        await until(lambda: self.process.poll() is not None, timeout_s)
        return self.process.returncode

    def engines(self) -> list[psutil.Process]:
        """The engine processes below it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if str(ENGINE) in " ".join(child.cmdline())]


NewWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
def write_config(tmp_path: Path, write_model: Callable[..., Path]) -> Callable[..., Path]:
    """Factory: a settings file with one model of the fake engine. `flags` are the fake's own."""
    counter = itertools.count()

    def write(*, slots: int = 2, flags: dict[str, Any] | None = None, **more: Any) -> Path:
        model_file = write_model(tmp_path / "model.gguf")
        model = {"model": MODEL, "path": str(model_file), "slots": slots}
        model["flags"] = {name: str(value) for name, value in (flags or {}).items()}
        path = tmp_path / f"worker-{next(counter)}.yaml"
        path.write_text(yaml.safe_dump({"models": [model], "engine": {"path": str(ENGINE)}} | more))
        return path

    return write


def spawn(arguments: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "worker", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with log.open("ab") as out:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=out, env=environ, cwd=log.parent)


async def begun(node: str, nats_url: str, config: Path, folder: Path, *arguments: str) -> Worker:
    """A worker that takes requests."""
    log = folder / f"{node}.log"
    base = ["--config", str(config), "--nats", nats_url, "--node", node, "--http", "127.0.0.1:0"]
    process = spawn([*base, "--state-dir", str(folder / f"state-{node}"), "--log-format", "json", *arguments], log)
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line, log.read_text()
    return Worker(node, process, log, json.loads(line))


@dataclass
class Shared:
    """A worker with the default settings on a server of its own, for all tests of a file that leave it as it was."""

    worker: Worker
    nats_url: str


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, fake: Callable[[str], Any]) -> Iterator[Shared]:
    """Its engine is ready."""
    folder = tmp_path_factory.mktemp("shared")
    server = fake("natsd").NatsServer(folder / "nats", "")
    server.start()
    model = {"model": MODEL, "path": str(fake("gguf").write(folder / "model.gguf")), "slots": 2}
    config = folder / "worker.yaml"
    config.write_text(yaml.safe_dump({"models": [model], "engine": {"path": str(ENGINE)}}))

    async def start() -> Worker:
        worker = await begun("n1", server.url, config, folder)
        await until(lambda: worker.lines("engine_ready"), 60)
        return worker

    worker = asyncio.run(start())
    yield Shared(worker, server.url)
    end_tree(worker.process)
    server.kill()


@pytest.fixture
def shared_worker(shared: Shared) -> Worker:
    """The worker of all tests of this file that leave it as it was."""
    return shared.worker


@pytest.fixture
async def shared_requester(shared: Shared) -> AsyncIterator[Requester]:
    """A requester on its server."""
    requester = Requester(await nats.connect(shared.nats_url), f"s{next(_NAMES)}")
    await requester.start()
    yield requester
    await requester.stop()


@pytest.fixture
async def new_worker(nats_server: Any, tmp_path: Path, write_config: Callable[..., Path]) -> AsyncIterator[NewWorker]:
    """Factory: `await new_worker(slots=2, flags={"chunks": 20})` → a worker whose engine is ready."""
    started: list[Worker] = []

    async def make(node: str = "n1", *, ready: bool = True, arguments: tuple[str, ...] = (), **config: Any) -> Worker:
        worker = await begun(node, nats_server.url, write_config(**config), tmp_path, *arguments)
        started.append(worker)
        if ready:
            await until(lambda: worker.lines("engine_ready"))
        return worker

    yield make
    for worker in started:
        end_tree(worker.process)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a worker and what it started."""
    if process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()
    process.wait(timeout=10)


@dataclass
class Stream:
    """What a requester got of one framed reply. `word` is its answer to `accept`; None: no answer."""

    token: str
    word: bytes | None = b"go"
    epoch: int = 1
    mark: str | None = None
    """That of the first `accept`; frames of another are not ours."""
    next_seq: int = 0
    kinds: list[str] = field(default_factory=list)
    data: bytes = b""
    last: dict[str, Any] = field(default_factory=dict)
    opened: dict[str, Any] = field(default_factory=dict)
    gap: bool = False
    repeated: int = 0
    pings: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        """The deltas joined."""
        events = [event[6:] for event in self.data.decode().split("\n\n") if event.startswith("data: {")]
        choices = [json.loads(event)["choices"] for event in events]
        return "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)

    def take(self, raw: bytes) -> None:
        head, _, payload = raw.partition(b"\n")
        kind, marked, seq = head.decode().split(" ")
        epoch, _, mark = marked.partition(".")
        if kind == "accept" and self.mark is None:
            self.mark = mark
        if int(epoch) != self.epoch or self.mark not in (None, mark):
            return
        if int(seq) != self.next_seq and not (kind == "error" and self.next_seq == 0):
            self.gap = self.gap or int(seq) > self.next_seq
            self.repeated += int(seq) < self.next_seq
            return
        self.next_seq = int(seq) + 1
        self.kinds.append(kind)
        self._note(kind, payload)

    def _note(self, kind: str, payload: bytes) -> None:
        if kind == "data":
            self.data += payload
        elif kind == "ping":
            self.pings += 1
        elif kind == "open":
            self.opened = json.loads(payload)
        elif kind in ("end", "error"):
            self.last = json.loads(payload)
            self.done.set()


class Requester:
    """Speaks frames as a gateway does, in plain nats-py."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.streams: dict[str, Stream] = {}
        self.crediting = True
        self.nodes: set[str] = set()
        self._count = itertools.count(1)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.client.subscribe(f"puna.reply.{self.name}.*", cb=self._frame)
        await self.client.flush()
        self._tasks.append(asyncio.create_task(self._credit()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if not self.client.is_closed:
            await self.client.close()

    async def _frame(self, message: Msg) -> None:
        stream = self.streams.get(message.subject.rpartition(".")[2])
        if stream is None:
            return
        if message.data.startswith(b"accept ") and message.reply:
            self.nodes.add(json.loads(message.data.partition(b"\n")[2])["node"])
            if stream.word is not None:
                await self.client.publish(message.reply, stream.word)
        stream.take(message.data)

    async def credit_now(self) -> None:
        lines = [f"{s.token} {s.epoch} {s.next_seq}" for s in self.streams.values() if not s.done.is_set()]
        for node in self.nodes:
            await self.client.publish(f"puna.node.{node}.credit", "\n".join(lines).encode())

    async def _credit(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            if self.crediting and self.client.is_connected:
                await self.credit_now()

    def expect(self, word: bytes | None = b"go", epoch: int = 1) -> Stream:
        token = f"{self.name}x{next(self._count)}"
        self.streams[token] = Stream(token, word, epoch)
        return self.streams[token]

    def headers(self, stream: Stream, **more: str) -> dict[str, str]:
        return {
            "Puna-Request": f"r-{stream.token}",
            "Puna-Epoch": str(stream.epoch),
            "Puna-Reply": f"puna.reply.{self.name}.{stream.token}",
            "Puna-Op": "chat",
            "Puna-Frames": "1",
            "Puna-Deadline": "60000",
        } | more

    async def ask(
        self, *, word: bytes | None = b"go", lane: str = "interactive", stream: bool = True, **headers: str
    ) -> Stream:
        """Put a framed chat into the line."""
        found = self.expect(word)
        body = json.dumps(QUESTION | {"stream": stream, "model": MODEL}).encode()
        subject = f"puna.queue.{lane}.{TOKEN}"
        await self.client.jetstream().publish(subject, body, headers=self.headers(found, **headers))
        return found

    async def ask_node(self, node: str, **headers: str) -> Stream:
        """A framed chat for one node."""
        found = self.expect()
        body = json.dumps(QUESTION | {"stream": True, "model": MODEL}).encode()
        await self.client.publish(f"puna.node.{node}.infer.chat.{TOKEN}", body, headers=self.headers(found, **headers))
        return found

    async def verb(self, node: str, verb: str, payload: bytes = b"") -> dict[str, Any]:
        """Ask one node something."""
        return json.loads((await self.client.request(f"puna.node.{node}.{verb}", payload, timeout=3)).data)

    async def busy(self, node: str) -> int:
        """Slots in use there."""
        return (await self.verb(node, "status"))["engines"][0]["slots_busy"]


NewRequester = Callable[..., Awaitable[Requester]]


@pytest.fixture
async def new_requester(nats_server: Any) -> AsyncIterator[NewRequester]:
    """Factory: `await new_requester("g1")`."""
    made: list[Requester] = []

    async def make(name: str = "g1") -> Requester:
        requester: Requester

        async def again() -> None:
            await requester.credit_now()

        client = await nats.connect(
            nats_server.url,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
            reconnected_cb=again,
            allow_reconnect=True,
        )
        requester = Requester(client, name)
        await requester.start()
        made.append(requester)
        return requester

    yield make
    for requester in made:
        await requester.stop()


@pytest.fixture
async def requester(new_requester: NewRequester) -> Requester:
    """One requester."""
    return await new_requester()


@pytest.fixture
def wait_until() -> Callable[..., Awaitable[Any]]:
    """`await wait_until(condition, timeout_s=10)`."""
    return until


@pytest.fixture
def run_worker(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Factory: `run_worker(arguments, **environment)` → the process; its log is `tmp_path/bare.log`."""
    started: list[subprocess.Popen[bytes]] = []

    def run(arguments: list[str], **environment: str) -> subprocess.Popen[bytes]:
        started.append(spawn(arguments, tmp_path / "bare.log", **environment))
        return started[-1]

    yield run
    for process in started:
        end_tree(process)
