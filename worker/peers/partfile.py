"""The part of a file that is written from other nodes: as a download leaves it, so either goes on with the other's.

Chunks are written once they were found right, and stand in the journal after that.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable
from typing import Final

from worker.devices import aside
from worker.peers import chunks
from worker.peers.hands import Hands
from worker.sources import RemoteFile
from worker.transfer.disk import disk_error, remains
from worker.transfer.intervals import Intervals
from worker.transfer.journal import Identity, Journal
from worker.transfer.part import Part

SYNC_BYTES: Final = 64 << 20
END_LIMIT_S: Final = 5.0


def identity_of(file: RemoteFile) -> Identity | None:
    """What tells that bytes are of the file; None where nothing does, and it cannot be had from others."""
    if file.size_bytes is None:
        return None
    if file.digest is not None:
        return Identity(file.size_bytes, str(file.digest))
    strong = file.etag is not None and file.etag.startswith('"')
    return Identity(file.size_bytes, None, file.etag) if strong else None


class PartFile:
    """Made by `open`, ended by `close`, both by its one owner."""

    def __init__(self, part: Part, hands: Hands, size_bytes: int, opened: tuple[int, Journal], done: Intervals) -> None:
        self.chunks = chunks.within(done, size_bytes)
        """Those that are there."""
        self._part = part
        self._size = size_bytes
        self._hands = hands
        self._data, self._journal = opened
        self._done = done
        self._lock = threading.Lock()
        self._unsynced = 0
        self._writing: set[asyncio.Future[bool]] = set()

    @property
    def inode(self) -> tuple[int, int]:
        """Device and number of the file."""
        told = os.fstat(self._data)
        return told.st_dev, told.st_ino

    @property
    def bytes_done(self) -> int:
        """What is there."""
        with self._lock:
            return self._done.size

    @classmethod
    async def open(cls, part: Part, identity: Identity, hands: Hands, *, without: int = 0) -> PartFile:
        """Go on with what is there, but for the chunks `without`. Raises `NoSpace`, `DiskFailed`."""
        found, size = await remains(part), identity.size or 0
        done = Intervals()
        if found is not None and found.identity.same_content(identity):
            identity, done = found.identity, found.done
        if without:
            done = chunks.spans_of(chunks.within(done, size) & ~without, size)

        def begin() -> tuple[int, Journal]:
            data = os.open(part.data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not done.size:
                    os.ftruncate(data, 0)
                return data, Journal.begin(part.journal, identity, done, synced=False)
            except OSError:
                os.close(data)
                raise

        try:
            return cls(part, hands, size, await aside(begin, "peers-open"), done)
        except OSError as error:
            raise disk_error(error, part) from error

    async def write(self, chunk: int, data: memoryview, sha256: str) -> bool:
        """Compare and write. False, and nothing is written, where it is not what it should be. Raises `NoSpace`,
        `DiskFailed`. Cancelled, the write goes on; `close` waits for it."""
        writing = self._hands.do(lambda: self._write(chunk, data, sha256))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        try:
            right = await asyncio.shield(writing)
        except OSError as error:
            raise disk_error(error, self._part) from error
        if right:
            self.chunks |= 1 << chunk
        return right

    async def close(self) -> None:
        """Nothing writes any more after this, unless the disk does not answer. Safe to call twice."""
        if self._writing:
            _, stuck = await asyncio.wait(set(self._writing), timeout=END_LIMIT_S)
            if stuck:
                return
        if self._data >= 0:
            os.close(self._data)
            self._journal.close()
            self._data = -1

    def _write(self, chunk: int, data: memoryview, sha256: str) -> bool:
        if hashlib.sha256(data).hexdigest() != sha256:
            return False
        start, end = chunks.span(chunk, self._size)
        at = start
        while at < end:
            at += os.pwrite(self._data, data[at - start :], at)
        with self._lock:
            self._journal.written(start, end)
            self._done.add(start, end)
            self._unsynced += end - start
            due, done = self._unsynced >= SYNC_BYTES, Intervals(self._done)
            self._unsynced = 0 if due else self._unsynced
        if due:
            os.fdatasync(self._data)
            with self._lock:
                self._journal.synced(done)
        return True


async def sums_of(part: Part, size_bytes: int, numbers: Iterable[int]) -> dict[int, str]:
    """The SHA-256 of chunks as they stand in a part. Raises `DiskFailed`."""

    def read() -> dict[int, str]:
        found = dict[int, str]()
        with part.data.open("rb", buffering=0) as file:
            for number in numbers:
                start, end = chunks.span(number, size_bytes)
                found[number] = hashlib.sha256(os.pread(file.fileno(), end - start, start)).hexdigest()
        return found

    try:
        return await aside(read, "peers-sums")
    except OSError as error:
        raise disk_error(error, part) from error
