"""One body on its way from a connection to the disk: limited, watched for stalls, written buffer by buffer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from worker.sources import Corrupt, Stalled
from worker.transfer.buffers import Buffer, BufferPool
from worker.transfer.connection import Connection
from worker.transfer.disk import Disk
from worker.transfer.limits import Share

SLOWEST_BYTES_PER_S: Final = 1024
PAUSE_FROM_S: Final = 0.002
"""A shorter wait is saved up until it is worth a timer."""


class Stream:
    """A `Sink` for the bytes from `start` to `end`; with `end` None, to wherever the body ends. One `run` each."""

    def __init__(
        self,
        connection: Connection,
        disk: Disk,
        pool: BufferPool,
        share: Share,
        on_bytes: Callable[[int, int], None],
        *,
        start: int,
        end: int | None,
        stall_timeout_s: float,
    ) -> None:
        self.at = start
        """The first byte that did not come yet."""
        self._connection = connection
        self._disk = disk
        self._pool = pool
        self._share = share
        self._on_bytes = on_bytes
        self._end = end
        self._stall_timeout_s = stall_timeout_s
        self._loop = asyncio.get_running_loop()
        self._buffer: Buffer | None = None
        self._used = 0
        self._held: asyncio.TimerHandle | None = None
        self._waiting = False
        self._paused_at_s: float | None = None
        self._window_s = self._loop.time()
        self._window_paused_s = 0.0
        self._window_bytes = 0
        self._over = False

    async def run(self) -> None:
        """Receive all of it. Whatever came is given to the disk, also when it ends in an error: `Unreachable`,
        `Stalled`, or `Corrupt` for more bytes than there may be."""
        watch = self._loop.call_later(self._stall_timeout_s / 4, self._look)
        self._watch = watch
        try:
            await self._connection.receive(self)
        except BaseException:
            self._connection.abort()
            raise
        finally:
            self._over = True
            self._watch.cancel()
            if self._held is not None:
                self._held.cancel()
            self._flush()

    # -- Sink -------------------------------------------------------------------------------------------------------
    def room(self) -> memoryview | None:
        if self._held is not None or self._waiting:
            return None
        if self._end is not None and self.at >= self._end:
            raise Corrupt(f"{self._connection.peer}: more bytes came than were asked for")
        if not self._has_buffer() or self._buffer is None:
            return None
        room = self._buffer.view[self._used :]
        limits = [each for each in (self._share.piece_bytes, self._end and self._end - self.at) if each is not None]
        return room[: min(limits)] if limits else room

    def filled(self, count: int) -> bool:
        if self._disk.failed.done():
            raise self._disk.failed.result()
        self.at += count
        self._used += count
        self._window_bytes += count
        if self._buffer is not None and self._used == len(self._buffer.view):
            self._flush()
        wait_s = self._share.take(count)
        if wait_s >= PAUSE_FROM_S:
            self._pausing()
            self._held = self._loop.call_later(wait_s, self._go_on)
            return False
        # asked for now, and not when bytes are there already, which would then have to be put somewhere else
        return self._has_buffer() or self.at == self._end

    # -- inside -----------------------------------------------------------------------------------------------------
    def _has_buffer(self) -> bool:
        if self._buffer is None:
            self._buffer = self._pool.take()
            if self._buffer is None:
                self._wait()
        return self._buffer is not None

    def _wait(self) -> None:
        self._waiting = True
        self._pausing()
        self._pool.wait(self._go_on)

    def _go_on(self) -> None:
        self._held, self._waiting = None, False
        if self._paused_at_s is not None:
            self._window_paused_s += self._loop.time() - self._paused_at_s
            self._paused_at_s = None
        if self._over:
            self._pool.pass_on()
        else:
            self._connection.resume()

    def _pausing(self) -> None:
        self._paused_at_s = self._loop.time()

    def _flush(self) -> None:
        buffer, used = self._buffer, self._used
        self._buffer, self._used = None, 0
        if buffer is None:
            return
        if not used:
            buffer.release()
            return
        self._disk.put(buffer, self.at - used, used)
        self._on_bytes(self.at - used, used)

    def _look(self) -> None:
        now_s = self._loop.time()
        paused_s = self._window_paused_s + (now_s - self._paused_at_s if self._paused_at_s is not None else 0.0)
        active_s = now_s - self._window_s - paused_s
        if self._window_bytes >= SLOWEST_BYTES_PER_S * self._stall_timeout_s:
            self._window_s, self._window_bytes, self._window_paused_s = now_s, 0, 0.0
            self._paused_at_s = now_s if self._paused_at_s is not None else None
        elif active_s >= self._stall_timeout_s:
            peer, rate = self._connection.peer, self._window_bytes / max(active_s, 0.001)
            self._connection.abort(Stalled(f"{peer}: {rate:.0f} bytes a second for {active_s:.0f} s"))
            return
        self._watch = self._loop.call_later(self._stall_timeout_s / 4, self._look)
