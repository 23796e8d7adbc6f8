"""Memory for what was received and is not yet written: a fixed number of buffers for each transfer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

LARGEST_BYTES: Final = 256 << 10
SMALLEST_BYTES: Final = 32 << 10


class Buffer:
    """One piece of memory. Whoever has it hands it on, or gives it back."""

    __slots__ = ("_pool", "view")

    def __init__(self, pool: BufferPool, size: int) -> None:
        self.view: Final = memoryview(bytearray(size))
        self._pool = pool

    def release(self) -> None:
        """Give it back, once. From any thread."""
        self._pool.given_back(self)


class BufferPool:
    """`take` and `wait` on the event loop, `given_back` from any thread."""

    def __init__(self, total_bytes: int, holders: int) -> None:
        """`holders`: connections that may each hold one at the same time. There are at least twice as many."""
        self.buffer_bytes: Final = min(LARGEST_BYTES, max(SMALLEST_BYTES, total_bytes // (2 * holders)))
        self._count = max(total_bytes // self.buffer_bytes, 2 * holders)
        self.total_bytes: Final = self._count * self.buffer_bytes
        self._made = 0
        self._closed = False
        self._free: list[Buffer] = []
        self._waiting: deque[Callable[[], None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self) -> Buffer | None:
        """A buffer, or None while all are in use: then `wait`."""
        self._loop = asyncio.get_running_loop()
        if self._free:
            return self._free.pop()
        if self._made == self._count:
            return None
        self._made += 1
        return Buffer(self, self.buffer_bytes)

    def wait(self, callback: Callable[[], None]) -> None:
        """Call it, first come first served, when one may be free."""
        self._waiting.append(callback)

    def close(self) -> None:
        """None is needed any more: those that are free now, and those that will be, are let go."""
        self._closed = True
        self._free.clear()

    def given_back(self, buffer: Buffer) -> None:
        """It is free."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: nobody will ask again
                self._loop.call_soon_threadsafe(self._put, buffer)

    def pass_on(self) -> None:
        """Whoever was called does not need one any more."""
        if self._waiting and (self._free or self._made < self._count):
            self._waiting.popleft()()

    def _put(self, buffer: Buffer) -> None:
        if not self._closed:
            self._free.append(buffer)
        self.pass_on()
