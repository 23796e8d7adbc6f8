"""One file on its way, on the disk: written at any place by one thread, hashed in order by a second, and brought to
the disk itself by a third every `SYNC_BYTES`, so that a power failure costs no more than about that.

After `abandon` no thread writes any more. A thread that the disk does not answer is left behind with a file descriptor
of its own; nothing waits for it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from worker.devices import aside
from worker.sources import Algorithm, DiskFailed, NoSpace, SourceError
from worker.transfer.buffers import Buffer
from worker.transfer.hashing import Digester, Front
from worker.transfer.intervals import Intervals
from worker.transfer.journal import Found, Identity, Journal, boot_id, read
from worker.transfer.part import Digests, Part

log = logging.getLogger(__name__)

SYNC_BYTES: Final = 32 << 20
ABANDON_LIMIT_S: Final = 5.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class Files:
    """File descriptors of one part. The syncing thread has its own: a disk that takes long over an fdatasync holds up
    neither an end nor a new beginning."""

    data: int
    data_sync: int
    journal: Journal
    journal_sync: Journal


class Disk:
    """Made by `open`; ends with `finish` or `abandon`, one of them."""

    def __init__(self, part: Part, files: Files, digester: Digester, done: Intervals) -> None:
        self._part = part
        self._files = files
        self._digester = digester
        self._front = Front(files.data, digester, done)
        self._todo: queue.SimpleQueue[tuple[Buffer, int, int] | None] = queue.SimpleQueue()
        self._stopping = False
        self._ended = False
        self._unsynced = 0
        self._sync_wanted = threading.Event()
        self._closing = False
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[SourceError] = loop.create_future()
        """Set when the disk refuses: nothing that is put after it is written."""
        self._loop = loop
        self._writer = self._thread(self._write, "write")
        self._hasher = self._thread(self._front.run, "hash")
        self._syncer = self._thread(self._sync, "sync")
        if done.size:
            self._sync_wanted.set()

    @classmethod
    async def open(cls, part: Part, identity: Identity, done: Intervals, algorithm: Algorithm | None) -> Disk:
        """Go on with the bytes `done` of the data file. Raises `NoSpace`, `DiskFailed`."""
        try:
            files = await aside(lambda: _opened(part, identity, done), "transfer-open")
        except OSError as error:
            raise disk_error(error, part) from error
        return cls(part, files, Digester(algorithm, identity.size), done)

    def put(self, buffer: Buffer, start: int, count: int) -> None:
        """Write the first bytes of a buffer at `start`. The buffer is given back when that is done. Never blocks."""
        self._todo.put((buffer, start, count))

    async def finish(self) -> Digests:
        """Wait until all is written, hashed and on the disk. Raises `NoSpace`, `DiskFailed`."""
        self._todo.put(None)
        await self._first(self._writer)
        self._closing = True
        self._sync_wanted.set()
        self._front.close()
        await self._first(self._hasher)
        await self._first(self._syncer)
        self._close()
        return self._digester.result()

    async def abandon(self, *, keep: bool = False) -> None:
        """Stop at once; what the journal says stays. With `keep`, what was put already is written first. Safe to call
        after `finish`, or twice."""
        if self._ended:
            return
        self._ended, self._stopping = True, not keep
        self._todo.put(None)
        if keep:
            await asyncio.wait((self._writer,), timeout=ABANDON_LIMIT_S)
        self._stopping = True
        self._front.stop()
        self._sync_wanted.set()
        _, stuck = await asyncio.wait((self._writer, self._hasher), timeout=ABANDON_LIMIT_S)
        if stuck:
            log.error("disk_stuck", extra={"event": "disk_stuck", "path": str(self._part.data)})
            return
        self._close()

    def _close(self) -> None:
        self._ended = True
        os.close(self._files.data)
        self._files.journal.close()

    async def _first(self, work: asyncio.Future[object]) -> None:
        """Wait for it, or for the disk to fail."""
        await asyncio.wait((work, self.failed), return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            raise self.failed.result()

    def _thread(self, work: Callable[[], None], name: str) -> asyncio.Future[object]:
        def run() -> object:
            try:
                work()
            except OSError as error:
                self._fail(error)
            return None

        return aside(run, f"transfer-{name}")

    def _fail(self, error: OSError) -> None:
        def tell() -> None:
            if not self.failed.done():
                self.failed.set_result(disk_error(error, self._part))

        self._stopping = True
        self._front.stop()
        self._loop.call_soon_threadsafe(tell)

    def _write(self) -> None:
        """The writer. It goes on after a failure, to give back the buffers."""
        while (item := self._todo.get()) is not None:
            buffer, start, count = item
            if self._stopping:
                buffer.release()
                continue
            try:
                _write_all(self._files.data, buffer.view[:count], start)
                self._files.journal.written(start, start + count)
            except OSError as error:
                buffer.release()
                self._fail(error)
                continue
            self._front.wrote(buffer, start, count)
            self._unsynced += count
            if self._unsynced >= SYNC_BYTES:
                self._unsynced = 0
                self._sync_wanted.set()

    def _sync(self) -> None:
        try:
            while not self._stopping:
                self._sync_wanted.wait()
                self._sync_wanted.clear()
                last = self._closing
                with self._front.changed:
                    done = Intervals(self._front.written)
                os.fdatasync(self._files.data_sync)
                self._files.journal_sync.synced(done)
                if last:
                    return
        finally:
            os.close(self._files.data_sync)
            self._files.journal_sync.close()


async def remains(part: Part) -> Found | None:
    """What an earlier process left of a part, as far as the data file has it. Raises `NoSpace`, `DiskFailed`."""

    def look() -> Found | None:
        found = read(part.journal, boot_id())
        if found is None:
            return None
        try:
            return replace(found, done=found.done.cut(part.data.stat().st_size))
        except FileNotFoundError:
            return None

    try:
        return await aside(look, "transfer-look")
    except OSError as error:
        raise disk_error(error, part) from error


def discard(part: Part) -> None:
    """Take both files of a part away."""
    part.journal.unlink(missing_ok=True)
    part.data.unlink(missing_ok=True)


def disk_error(error: OSError, part: Part) -> SourceError:
    """What a refusal of the disk means."""
    if isinstance(error, BlockingIOError):
        return DiskFailed(f"{part.data}: another process is writing it")
    if error.errno in _FULL:
        return NoSpace(f"no space left in {part.data.parent}: {error.strerror}")
    return DiskFailed(f"{part.data}: {error.strerror or error}")


def _write_all(file: int, view: memoryview, at: int) -> None:
    while view:
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count


def _opened(part: Part, identity: Identity, done: Intervals) -> Files:
    with ExitStack() as undo:
        data = os.open(part.data, _OPEN, 0o600)
        undo.callback(os.close, data)
        fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not done.size:
            os.ftruncate(data, 0)
        data_sync = os.open(part.data, _OPEN, 0o600)
        undo.callback(os.close, data_sync)
        journal = Journal.begin(part.journal, identity, done, synced=False)
        undo.callback(journal.close)
        files = Files(data, data_sync, journal, journal.twin())
        undo.pop_all()
        return files
