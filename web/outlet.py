"""The way out of one connection: what is written, joined inside a short window, and what still waits.

The first write after a quiet time goes to the transport at once; only another one inside the window waits, and all
that wait go out as one. So a lone chunk is never late, and a burst costs one system call.
"""

from __future__ import annotations

import asyncio
from time import monotonic


class JoinWindow:
    """The timer that all connections of a server share: one for any number of them that have something waiting."""

    def __init__(self, loop: asyncio.AbstractEventLoop, window_s: float) -> None:
        self.window_s = window_s
        self._loop = loop
        self._due: list[Outlet] = []

    def add(self, outlet: Outlet) -> None:
        """Flush `outlet` at the end of the window."""
        if not self._due:
            self._loop.call_later(self.window_s, self._flush)
        self._due.append(outlet)

    def _flush(self) -> None:
        due, self._due = self._due, []
        for outlet in due:
            outlet.flush()


class Outlet:
    """Writes to one transport. Must not be used after `close`."""

    __slots__ = ("_sent_at", "_stall_mark", "_transport", "_waiting", "_window", "_window_s", "paused", "written")

    def __init__(self, transport: asyncio.Transport, window: JoinWindow) -> None:
        self._transport = transport
        self._window = window
        self._window_s = window.window_s
        self._waiting: list[bytes] = []
        self._sent_at = 0.0
        self._stall_mark = 0
        self.paused = False
        self.written = 0

    def write(self, data: bytes) -> None:
        """Send `data`, at the end of the join window if something was sent just now."""
        if self._waiting:
            self._waiting.append(data)
            return
        now = monotonic()
        if now - self._sent_at < self._window_s:
            self._waiting.append(data)
            self._window.add(self)
            return
        self._sent_at = now
        self.written += len(data)
        self._transport.write(data)

    def send(self, data: bytes) -> None:
        """Send what waits and `data`, now."""
        if self._waiting:
            self._waiting.append(data)
            self.flush()
            return
        self._sent_at = monotonic()
        self.written += len(data)
        self._transport.write(data)

    def flush(self) -> None:
        """Send what waits, now."""
        if self._waiting:
            data = b"".join(self._waiting)
            self._waiting.clear()
            self._sent_at = monotonic()
            self.written += len(data)
            self._transport.write(data)

    def discard(self) -> None:
        """Forget what waits in the window: the connection is gone."""
        self._waiting.clear()

    @property
    def buffered_bytes(self) -> int:
        """What was written and is not yet with the operating system."""
        waiting = sum(map(len, self._waiting)) if self._waiting else 0
        return waiting + self._transport.get_write_buffer_size()

    def progressed(self) -> bool:
        """Whether the client took anything since this was asked last."""
        taken = self.written - self._transport.get_write_buffer_size()
        before, self._stall_mark = self._stall_mark, taken
        return taken != before
