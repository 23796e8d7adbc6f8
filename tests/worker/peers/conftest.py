"""Nodes that share files, without engines and tasks: real NATS, real HTTP between them, a source that counts."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from bus.connection import Bus
from bus.settings import NatsSettings
from bus.topology import ensure
from bus.watched import Tasks
from schemas.errors import PunaError
from schemas.source import parse_source
from schemas.topology import fleet
from web import Exchange, Server
from worker.peers.copies import Shelf
from worker.peers.metrics import PeerMetrics
from worker.peers.peers import Peers
from worker.peers.settings import PeerSettings
from worker.sources import Digest, Listing, RemoteFile, Signed
from worker.store import layout
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Digests, Part
from worker.transfer.settings import DownloadSettings

FAKES = Path(__file__).parents[2] / "fakes"
MB = 1 << 20
QUICK = {"retry_interval_s": 0.02, "download_retry": 1, "read_timeout_s": 2.0, "stall_timeout_s": 2.0}


def _fake(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fakes_{name}", FAKES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[f"fakes_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Site:
    """The source."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.server = _fake("started").Started("fileserver.py", root)
        self.contents: dict[str, bytes] = {}

    def file(self, size: int, *, name: str = "model.gguf", digest: bool = True) -> RemoteFile:
        """A file of random bytes, as a listing has it."""
        content = os.urandom(size)
        (self.root / name).write_bytes(content)
        self.contents[name] = content
        sha256 = Digest("sha256", hashlib.sha256(content).hexdigest()) if digest else None
        stat = (self.root / name).stat()
        etag = f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
        return RemoteFile(name, f"{self.server.origins['files']}/{name}", size, sha256, etag)

    @property
    def sent(self) -> int:
        return sum(self.server.seen()["sent"].values())


class Member:
    """One node."""

    def __init__(self, node: str, bus: Bus, folder: Path, settings: dict[str, Any]) -> None:
        self.node = node
        self.bus = bus
        self.root = folder
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.bytes: list[int] = []
        self.copies: dict[str, Any] = {}
        self.states: dict[str, Any] = {}
        self.tasks = Tasks()
        self.registry = CollectorRegistry()
        self.inner = Fetcher(DownloadSettings(**QUICK))
        for name in layout.FOLDERS:
            (folder / name[0]).mkdir(parents=True)
        self.peers = Peers(
            bus,
            node,
            PeerSettings(**({"answer_wait_s": 0.15, "stall_timeout_s": 0.5, "lease_s": 2.0} | settings)),
            self.inner,
            roots=(folder,),
            shelf=Shelf(lambda: self.copies, lambda: self.states, lambda: True),
            advertise=None,
            tasks=self.tasks,
            tell=lambda kind, **facts: self.told.append((kind, facts)),
            watch=PeerMetrics(self.registry),
        )
        self.server = Server(self._page)
        self.url = ""

    async def start(self) -> Member:
        host, port = await self.server.start("127.0.0.1", 0)
        self.url = f"http://{host}:{port}"
        await self.peers.listens(host, port)
        await self.bus.flush(5)
        return self

    async def stop(self) -> None:
        self.peers.stop()
        self.inner.close()
        await self.server.stop(0)
        await self.tasks.stop()
        await self.bus.close()

    def _page(self, exchange: Exchange) -> None:
        try:
            self.peers.page(exchange, [])
        except PunaError as error:
            exchange.respond(error.http_status, error.body())

    def part(self, file: RemoteFile) -> Part:
        folder = self.root / "partial" / key_of(file)
        folder.mkdir(exist_ok=True)
        return Part(folder / "data", folder / "journal")

    async def fetch(self, file: RemoteFile) -> Digests:
        """Have the file as a blob."""

        async def sign() -> Signed:
            return Signed(file.url)

        part = self.part(file)
        digests = await self.peers.fetcher.fetch(file, sign, part, self.bytes.append, source="http")
        assert sum(self.bytes) == digests.size_bytes
        part.data.rename(self.blob(digests.sha256))
        part.journal.unlink()
        return digests

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / f"sha256-{sha256}"

    def put(self, content: bytes, sha256: str) -> None:
        """It has had this file for long."""
        self.blob(sha256).write_bytes(content)

    def counted(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def heard(self, kind: str) -> list[dict[str, Any]]:
        return [facts for told, facts in self.told if told == kind]


def key_of(file: RemoteFile) -> str:
    return layout.partial_key(Listing(parse_source("https://site/x"), "one", (file,), file.path), file)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    made = Site(tmp_path / "site")
    yield made
    made.server.stop()


NewMember = Callable[..., Awaitable[Member]]


@pytest.fixture
async def new_member(nats_server: Any, tmp_path: Path) -> AsyncIterator[NewMember]:
    """`await new_member(**peer_settings)` → a node that shares files; `url`: the way to NATS."""
    made: list[Member] = []

    async def make(url: str = "", **settings: Any) -> Member:
        node = f"n{len(made)}"
        bus = await Bus.connect(NatsSettings(url=url or nats_server.url), name=node)
        await ensure(bus, fleet(bus.names))
        made.append(await Member(node, bus, tmp_path / node, settings).start())
        return made[-1]

    yield make
    for member in made:
        await member.stop()


@pytest.fixture
def key() -> Callable[[RemoteFile], str]:
    """The key of a file."""
    return key_of


@pytest.fixture
def get() -> Callable[..., Awaitable[tuple[int, dict[str, str], bytes]]]:
    """`await get(url, token, range)` → status, headers and body, as any program would ask."""

    async def asked(url: str, token: str = "", text: str = "") -> tuple[int, dict[str, str], bytes]:
        host, _, path = url.removeprefix("http://").partition("/")
        reader, writer = await asyncio.open_connection(*host.split(":"))
        lines = [f"GET /{path} HTTP/1.1", f"Host: {host}", "Connection: close"]
        lines += [f"Authorization: Bearer {token}"] if token else []
        lines += [f"Range: {text}"] if text else []
        writer.write("\r\n".join([*lines, "", ""]).encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        status, *rest = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        return int(status.split()[1]), headers, body

    return asked
