"""A file server that misbehaves, and a fetcher that tries again soon."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worker.sources import Digest, RemoteFile, Signed
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Digests, Part
from worker.transfer.settings import DownloadSettings

MB = 1 << 20
QUICK: dict[str, Any] = {
    "retry_interval_s": 0.02,
    "hf_retry_interval_s": 0.02,
    "multipart_threshold_bytes": 4 * MB,
    "piece_bytes": MB,
    "stall_timeout_s": 1.0,
    "connect_timeout_s": 3.0,
    "read_timeout_s": 1.0,
}


class Site:
    """The file server, and what is fetched from it."""

    def __init__(self, root: Path, work: Path, started: ModuleType) -> None:
        self.root = root
        self.part = Part(work / "data", work / "journal")
        self.server = started.Started("fileserver.py", root)
        self.told: list[int] = []
        self.contents: dict[str, bytes] = {}

    def file(
        self, name: str, size: int, *, digest: bool = True, sized: bool = True, origin: str = "files"
    ) -> RemoteFile:
        """A file of random bytes on the server, as a listing has it."""
        content = os.urandom(size)
        (self.root / name).write_bytes(content)
        self.contents[name] = content
        sha256 = Digest("sha256", hashlib.sha256(content).hexdigest()) if digest else None
        return RemoteFile(name, f"{self.server.origins[origin]}/{name}", size if sized else None, sha256)

    async def fetch(self, fetcher: Fetcher, file: RemoteFile, **more: Any) -> Digests:
        headers = more.pop("headers", {})

        async def sign() -> Signed:
            return Signed(file.url, headers)

        return await fetcher.fetch(file, sign, self.part, self.told.append, **more)

    @property
    def sent(self) -> int:
        return sum(self.server.seen()["sent"].values())

    def gets(self) -> list[dict[str, Any]]:
        return self.server.requests(method="GET")

    def is_whole(self, file: RemoteFile) -> bool:
        return self.part.data.read_bytes() == self.contents[file.path] and sum(self.told) == len(
            self.contents[file.path]
        )


@pytest.fixture
def site(tmp_path: Path, fake: Callable[[str], ModuleType]) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    (tmp_path / "work").mkdir()
    made = Site(tmp_path / "site", tmp_path / "work", fake("started"))
    yield made
    made.server.stop()


@pytest.fixture
async def fetcher() -> AsyncIterator[Fetcher]:
    made = Fetcher(DownloadSettings(**QUICK))
    yield made
    made.close()


@pytest.fixture
async def make_fetcher() -> AsyncIterator[Callable[..., Fetcher]]:
    made: list[Fetcher] = []

    def make(**settings: Any) -> Fetcher:
        made.append(Fetcher(DownloadSettings(**{**QUICK, **settings})))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def within() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait until something is so."""

    async def wait(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.005)

    return wait
