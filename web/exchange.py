"""One request and its response, as the handler sees it. All plain calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from web.message import CHUNKED, CLOSE, KEEP_ALIVE_10, LAST_CHUNK, Header, Request, render_head
from web.outlet import Outlet

LARGE_BYTES: Final = 65536
"""So much at once is worth a send of its own: to copy it would cost more."""
_OPEN, _STREAMING, _DONE = range(3)
_STATES = ("not begun", "under way", "complete")


class Carrier(Protocol):
    """What an exchange needs of its connection."""

    outlet: Outlet

    def keeps_alive(self, request: Request) -> bool:
        """Whether another request may follow this one."""
        ...

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back at the end of this loop tick."""
        ...

    def answered(self, *, keep_alive: bool) -> None:
        """The response is complete."""
        ...

    def cut(self, *, reset: bool) -> None:
        """End the connection in the middle of the response."""
        ...

    def widen(self, size: int) -> None:
        """Let the operating system take so many bytes that are not sent yet."""
        ...


class Exchange:
    """One request and its response: the handler calls `respond`, or `start`, `write` and `finish`, now or later.

    After the client left (`closed`) all calls do nothing, so that a handler need not ask first. A call out of order
    (a second response, a write before `start`) raises `RuntimeError`.
    """

    __slots__ = (
        "_bodiless",
        "_carrier",
        "_chunked",
        "_head",
        "_keep_alive",
        "_outlet",
        "_state",
        "closed",
        "on_closed",
        "on_drained",
        "request",
    )

    def __init__(self, request: Request, carrier: Carrier) -> None:
        self.request = request
        self.closed = False
        """The client left, or the connection was cut, before the response was complete."""
        self.on_closed: Callable[[], None] | None = None
        """Called once if the client leaves before `finish`; not after the handler's own `abort`."""
        self.on_drained: Callable[[], None] | None = None
        """Called when a client that was slow (`writable` false) has taken most of what waited."""
        self._carrier = carrier
        self._outlet = carrier.outlet
        self._state = _OPEN
        self._head: bytes | None = None
        self._chunked = True
        self._keep_alive = True
        self._bodiless = request.method == "HEAD"

    @property
    def started(self) -> bool:
        """A response has been begun."""
        return self._state != _OPEN

    @property
    def finished(self) -> bool:
        """The response is complete, or was cut."""
        return self._state == _DONE

    @property
    def writable(self) -> bool:
        """The client keeps up: less than `Limits.write_buffer_bytes` waits for it."""
        return not self._outlet.paused

    @property
    def buffered_bytes(self) -> int:
        """What was written and the operating system has not taken yet."""
        return 0 if self.closed else self._outlet.buffered_bytes

    def respond(
        self, status: int, body: bytes, *, content_type: str = "application/json", headers: Sequence[Header] = ()
    ) -> None:
        """The whole response, in one send."""
        if self.closed:
            return
        self._expect(_OPEN)
        keep_alive = self._carrier.keeps_alive(self.request)
        length = b"content-length: %d\r\n" % len(body)
        if status == 204 or status == 304:
            length, content_type, body = b"", "", b""
        head = render_head(status, content_type, headers, length + self._connection_line(keep_alive))
        self._state = _DONE
        self._outlet.send(head if self._bodiless else head + body)
        self._carrier.answered(keep_alive=keep_alive)

    def start(
        self, status: int, *, content_type: str, headers: Sequence[Header] = (), length: int | None = None
    ) -> None:
        """Begin a response, of unknown length or of so many bytes, which the caller then writes exactly. The head goes
        out with the first write of this loop tick, else alone."""
        if self.closed:
            return
        self._expect(_OPEN)
        self._chunked = length is None and not self.request.http10
        self._keep_alive = (self._chunked or length is not None) and self._carrier.keeps_alive(self.request)
        if length is not None:
            framing = b"content-length: %d\r\n" % length + self._connection_line(self._keep_alive)
        else:
            framing = (CHUNKED if self._chunked else b"") + (b"" if self._keep_alive else CLOSE)
        self._head = render_head(status, content_type, headers, framing)
        self._state = _STREAMING
        self._carrier.soon(self._send_head)

    def widen(self, size: int) -> None:
        """Pieces of so many bytes follow, for a client that is known to read: the operating system may take one whole,
        where else it takes little, so that it is seen when a client reads nothing."""
        if not self.closed:
            self._carrier.widen(size)

    def write(self, data: bytes) -> None:
        """One chunk. Writes that come closely after each other leave together."""
        if self.closed or not data:
            return
        if self._state != _STREAMING:
            self._expect(_STREAMING)
        if self._bodiless:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head is not None:
            head, self._head = self._head, None
            if len(data) < LARGE_BYTES:
                self._outlet.send(head + data)
                return
            self._outlet.send(head)
        if len(data) < LARGE_BYTES:
            self._outlet.write(data)
        else:
            self._outlet.send(data)

    def finish(self) -> None:
        """The response is complete."""
        if self.closed:
            return
        self._expect(_STREAMING)
        self._send_head()
        self._state = _DONE
        if self._chunked and not self._bodiless:
            self._outlet.send(LAST_CHUNK)
        else:
            self._outlet.flush()
        self._carrier.answered(keep_alive=self._keep_alive)

    def abort(self) -> None:
        """Cut the connection: the client sees that the response is not whole. What was written is still sent."""
        if self.closed or self._state == _DONE:
            return
        self.closed = True
        self._state = _DONE
        # Where the end of the connection is the end of the body, only a reset says that something is missing.
        self._carrier.cut(reset=not self._chunked)

    def leave(self) -> None:
        """For the connection: the client is gone."""
        if self.closed or self._state == _DONE:
            return
        self.closed = True
        if self.on_closed is not None:
            self.on_closed()

    def _send_head(self) -> None:
        if self._head is not None and not self.closed:
            head, self._head = self._head, None
            self._outlet.send(head)

    def _connection_line(self, keep_alive: bool) -> bytes:
        if not keep_alive:
            return CLOSE
        return KEEP_ALIVE_10 if self.request.http10 else b""

    def _expect(self, state: int) -> None:
        if self._state != state:
            raise RuntimeError(f"the response is {_STATES[self._state]}, not {_STATES[state]}")
