"""Files of the node itself, copied into the store: by reference where the file system can, else piece by piece.

A copy has a journal like a download: what an earlier process has copied of the same file is read back for the digest,
and not copied again.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable
from typing import Final
from urllib.parse import unquote, urlsplit

from worker.devices import aside
from worker.sources import Changed, NotThere, RemoteFile, SourceError
from worker.transfer.disk import disk_error
from worker.transfer.hashing import Digester
from worker.transfer.intervals import Intervals
from worker.transfer.journal import Identity, Journal, boot_id, read
from worker.transfer.limits import Share
from worker.transfer.part import Digests, Part

PIECE_BYTES: Final = 1 << 20
ABANDON_LIMIT_S: Final = 5.0
_FICLONE: Final = 0x40049409
_PLAIN: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY)


async def copy_file(file: RemoteFile, part: Part, on_bytes: Callable[[int], None], share: Share) -> Digests:
    """Copy what `file.url` (file://) names to `part.data`, synced; what is there of it already is kept.

    Raises `NotThere`, `Changed` if it has not the size that was listed, `NoSpace`, `DiskFailed`.
    """
    copy = _Copy(file, part, on_bytes, share)
    thread = aside(copy.run, "transfer-copy")
    try:
        digests = await asyncio.shield(thread)
    except asyncio.CancelledError:
        copy.stop.set()
        await asyncio.wait((thread,), timeout=ABANDON_LIMIT_S)
        thread.cancel()  # where the disk does not answer: nobody asks any more
        if not thread.cancelled():
            thread.exception()
        raise
    try:
        await aside(lambda: _synced(part), "transfer-sync")  # writes nothing new: it need not be waited for at a cancel
    except OSError as error:
        raise disk_error(error, part) from error
    return digests


class _Copy:
    def __init__(self, file: RemoteFile, part: Part, on_bytes: Callable[[int], None], share: Share) -> None:
        self.stop = threading.Event()
        self._file = file
        self._part = part
        self._share = share
        self._on_bytes = on_bytes
        self._loop = asyncio.get_running_loop()
        self._piece = memoryview(bytearray(PIECE_BYTES))

    def run(self) -> Digests:
        path = unquote(urlsplit(self._file.url).path)
        try:
            source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise NotThere(f"{path}: {error.strerror}", of_node=True) from error
        try:
            target = os.open(self._part.data, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(target, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._copied(source, target)
            finally:
                os.close(target)
        except OSError as error:
            raise disk_error(error, self._part) from error
        finally:
            os.close(source)

    def _copied(self, source: int, target: int) -> Digests:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise NotThere(f"{self._file.path}: is no regular file", of_node=True)
        if self._file.size_bytes is not None and found.st_size != self._file.size_bytes:
            raise Changed(f"{self._file.path}: has {found.st_size} bytes, not {self._file.size_bytes}")
        digest = self._file.digest
        identity = Identity(found.st_size, str(digest) if digest else None, f"{found.st_ino}-{found.st_mtime_ns}")
        digester = Digester(digest.algorithm if digest else None, found.st_size)
        there = self._there(target, identity)
        os.ftruncate(target, there)
        if not there and _clone(source, target):
            there = found.st_size
        journal = Journal.begin(self._part.journal, identity, Intervals([(0, there)]), synced=False)
        try:
            self._hashed(target, digester, there)
            self._rest(source, target, digester, journal)
        finally:
            journal.close()
        if self.stop.is_set():
            raise SourceError("stopped")
        return digester.result()

    def _there(self, target: int, identity: Identity) -> int:
        """How much of the same file an earlier process has copied."""
        found = read(self._part.journal, boot_id())
        return min(found.done.reach(0), os.fstat(target).st_size) if found and found.identity == identity else 0

    def _hashed(self, target: int, digester: Digester, end: int) -> None:
        while digester.size < end and not self.stop.is_set():
            piece = self._piece[: end - digester.size]
            count = os.preadv(target, [piece], digester.size)
            if not count:
                raise OSError(f"the file ends at byte {digester.size}, where it was {end} bytes long")
            digester.update(piece[:count])
            self._loop.call_soon_threadsafe(self._on_bytes, count)

    def _rest(self, source: int, target: int, digester: Digester, journal: Journal) -> None:
        while not self.stop.is_set() and (count := os.preadv(source, [self._piece], digester.size)):
            _write_all(target, self._piece[:count], digester.size)
            journal.written(digester.size, digester.size + count)
            digester.update(self._piece[:count])
            self._loop.call_soon_threadsafe(self._on_bytes, count)
            self.stop.wait(self._share_wait(count))

    def _share_wait(self, count: int) -> float:
        if self._share.piece_bytes is None:
            return 0.0
        return asyncio.run_coroutine_threadsafe(_taken(self._share, count), self._loop).result()


async def _taken(share: Share, count: int) -> float:
    """On the event loop, where the limits live."""
    return share.take(count)


def _synced(part: Part) -> None:
    file = os.open(part.data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _clone(source: int, target: int) -> bool:
    """Share the blocks, where the file system can."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _PLAIN:
            return False
        raise
    return True


def _write_all(file: int, view: memoryview, at: int) -> None:
    while view:
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count
