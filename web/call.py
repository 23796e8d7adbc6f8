"""One request under way: how its caller stops it, and who takes its answer.

Exactly one of `end` and `failed` closes an answer, and after `abort` nothing is called any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol


class CallFailed(Exception):
    """The engine gave no whole answer."""


class ConnectFailed(CallFailed):
    """Nobody listens there, or not in time."""


class ConnectionCut(CallFailed):
    """The connection ended before the answer did."""


class BadAnswer(CallFailed):
    """What came is not HTTP, or its head is over the limit."""


class AnswerTooLarge(CallFailed):
    """The body is over the limit that the caller set."""


class CallTimeout(CallFailed):
    """The answer, or its head, did not come in time."""


class Sink(Protocol):
    """Takes an answer. The calls come from the socket's own callback."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers, names in lower case."""
        ...

    def data(self, data: bytes) -> None:
        """Some of the body: all that one read gave."""
        ...

    def end(self) -> None:
        """The answer is whole."""
        ...

    def failed(self, error: Exception) -> None:
        """There will be no (more) answer; `error` is a `CallFailed`, or what a method of this sink raised."""
        ...


class Line(Protocol):
    """The connection that a call is on."""

    def hold(self, held: bool) -> None:
        """Stop or go on reading."""
        ...

    def close(self) -> None:
        """Close at once; nothing more is read."""
        ...


class Call:
    """A request under way."""

    def __init__(self, request: bytes, sink: Sink, *, bodiless: bool, head_timeout_s: float | None) -> None:
        self.request = request
        self.sink = sink
        self.bodiless = bodiless
        self.socket: Line | None = None
        self.done = False
        """Ended, failed or aborted."""
        self.paused = False
        self._timer: asyncio.TimerHandle | None = None
        if head_timeout_s is not None:
            self._timer = asyncio.get_running_loop().call_later(head_timeout_s, self._head_late)

    def abort(self) -> None:
        """Close the socket, which frees the engine's slot. The sink hears no more. Safe to call twice."""
        if self.close():
            self.drop_socket()

    def pause(self) -> None:
        """Read no more for now."""
        self.paused = True
        if self.socket is not None:
            self.socket.hold(True)

    def resume(self) -> None:
        """Read on after `pause`."""
        self.paused = False
        if self.socket is not None:
            self.socket.hold(False)

    def fail(self, error: Exception) -> None:
        """Tell the sink, once, and close the socket."""
        if self.close():
            self.drop_socket()
            self.sink.failed(error)

    def close(self) -> bool:
        """Mark the call as over. False if it was already."""
        was_open, self.done = not self.done, True
        self.head_arrived()
        return was_open

    def head_arrived(self) -> None:
        """The head is there: its timer goes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drop_socket(self) -> None:
        """Close the socket, if the call has one."""
        socket, self.socket = self.socket, None
        if socket is not None:
            socket.close()

    def _head_late(self) -> None:
        self.fail(CallTimeout("the engine did not begin its answer in time"))
