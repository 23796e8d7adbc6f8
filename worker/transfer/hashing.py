"""Digests of a file, computed in order while it is written in any order.

What arrives just where the digest stands is taken from memory; anything else is read back later, which costs little as
it is still in the page cache. A thread of its own: hashing and writing then run side by side.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from typing import Any, Final

from worker.sources import Algorithm
from worker.transfer.buffers import Buffer
from worker.transfer.intervals import Intervals
from worker.transfer.part import Digests

READ_BYTES: Final = 1 << 20
AHEAD_BUFFERS: Final = 4
"""Buffers that may wait to be hashed from memory; with more the disk is read instead, so that memory is free."""


class Digester:
    """The digests of bytes that come in order."""

    def __init__(self, algorithm: Algorithm | None, size: int | None) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False) if algorithm == "md5" else None
        self._git = hashlib.sha1(usedforsecurity=False) if algorithm == "git-sha1" and size is not None else None
        if self._git is not None:
            self._git.update(b"blob %d\0" % (size or 0))
        self._others = [each for each in (self._md5, self._git) if each is not None]

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes."""
        self._sha256.update(data)
        for each in self._others:
            each.update(data)
        self.size += len(data)

    def result(self) -> Digests:
        """Of all bytes so far."""
        hexes: list[Any] = [each.hexdigest() if each else None for each in (self._md5, self._git)]
        return Digests(self.size, self._sha256.hexdigest(), *hexes)


class Front:
    """What is written and what of it is hashed. The writer tells, one other thread runs `advance`."""

    def __init__(self, file: int, digester: Digester, written: Intervals) -> None:
        self.written: Final = written
        self.changed: Final = threading.Condition()
        """Guards all of this."""
        self._file = file
        self._digester = digester
        self._taken = 0
        self._queue: deque[tuple[Buffer, int]] = deque()
        self._stopped = False
        self._closing = False
        self._scratch = bytearray(READ_BYTES)

    def wrote(self, buffer: Buffer, start: int, count: int) -> None:
        """`count` bytes of a buffer are in the file at `start`; the buffer is given back when it was hashed, or now."""
        with self.changed:
            self.written.add(start, start + count)
            keep = start == self._taken and len(self._queue) < AHEAD_BUFFERS and not self._stopped
            if keep:
                self._queue.append((buffer, count))
                self._taken += count
            self.changed.notify_all()
        if not keep:
            buffer.release()

    def close(self) -> None:
        """Nothing more will be written: `run` ends when it has hashed what there is without a gap."""
        with self.changed:
            self._closing = True
            self.changed.notify_all()

    def stop(self) -> None:
        """End `run` where it is, and give back all buffers."""
        with self.changed:
            self._stopped = True
            while self._queue:
                self._queue.popleft()[0].release()
            self.changed.notify_all()

    def run(self) -> None:
        """Hash until closed or stopped. Raises `OSError`."""
        while True:
            with self.changed:
                work = self._next()
                while work is None:
                    if self._closing or self._stopped:
                        return
                    self.changed.wait()
                    work = self._next()
            if isinstance(work, tuple):
                self._from_memory(*work)
            elif not self._from_disk(work):
                return

    def _next(self) -> tuple[Buffer, int] | int | None:
        """A buffer and its bytes, or how much to read back, or None."""
        if self._stopped:
            return None
        if self._queue:
            return self._queue.popleft()
        ready = min(self.written.reach(self._taken) - self._taken, READ_BYTES)
        self._taken += ready
        return ready or None

    def _from_memory(self, buffer: Buffer, count: int) -> None:
        try:
            self._digester.update(buffer.view[:count])
        finally:
            buffer.release()

    def _from_disk(self, count: int) -> bool:
        at, end = self._digester.size, self._digester.size + count
        while at < end and not self._stopped:
            got = os.preadv(self._file, [memoryview(self._scratch)[: end - at]], at)
            if not got:
                raise OSError(f"the file ends at byte {at}, where it was {end} bytes long")
            self._digester.update(memoryview(self._scratch)[:got])
            at += got
        return not self._stopped
