"""One HTTP/1.1 connection to a source, one request at a time.

A body of known length is received straight into its sink's memory and never passes the parser, which reads heads and
chunked bodies. What a server sends beyond its answer, or unasked, ends the connection.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import httptools

from worker.sources import Corrupt, SourceError, Unreachable

HEAD_LIMIT_BYTES: Final = 64 << 10
HEAD_LIMIT_LINES: Final = 100
READ_BYTES: Final = 128 << 10
_ROUND_TRIP_AT: Final = 148
"""Where Linux's `struct tcp_info` has the shortest round trip, in microseconds."""


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer; names in lower case. `length` of the body, None where only its end tells."""

    status: int
    headers: Mapping[str, str]
    length: int | None


class Sink(Protocol):
    """Takes a body. Plain calls, from the connection's own callbacks."""

    def room(self) -> memoryview | None:
        """Where the next bytes go, at least one; None: not now, `Connection.resume` says when."""
        ...

    def filled(self, count: int) -> bool:
        """So many bytes are there. False: read no more until `Connection.resume`."""
        ...


class Connection(asyncio.BufferedProtocol):
    """Made by `worker.transfer.dial`. `peer` names it in errors."""

    def __init__(self, peer: str) -> None:
        self.peer: Final = peer
        self.closed: Final = asyncio.Event()
        self.idle_since_s = 0.0
        self.used = False
        """It has answered before: if it fails before the next answer, a new one may be tried at once."""
        self._transport: asyncio.Transport | None = None
        self._scratch = bytearray(READ_BYTES)
        self._head: asyncio.Future[Head] | None = None
        self._body: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._pending = bytearray()
        """Body that came before its sink, or while the sink had no room."""
        self._raw_left: int | None = None
        """Bytes of the body that do not go through the parser."""
        self._whole = True
        self._keep = False
        self._direct = False
        self._reset("GET")

    def _reset(self, method: str) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._method = method
        self._headers: dict[str, str] = {}
        self._lines = 0
        self._head_bytes = 0

    # -- use --------------------------------------------------------------------------------------------------------
    @property
    def usable(self) -> bool:
        """It may carry another request."""
        return self._keep and self._whole and not self._pending and not self.closed.is_set()

    @property
    def transport(self) -> asyncio.Transport:
        """Raises `Unreachable` when it is gone."""
        if self._transport is None or self.closed.is_set():
            raise Unreachable(f"{self.peer}: the connection was closed")
        return self._transport

    async def request(self, method: str, target: str, headers: Mapping[str, str]) -> Head:
        """Ask; returns with the answer's head, its body yet to be taken. Raises `Unreachable`."""
        transport = self.transport
        self._reset(method)
        self._whole, self._keep = False, False
        self._head = asyncio.get_running_loop().create_future()
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        transport.write("\r\n".join(lines).encode("latin-1"))
        transport.resume_reading()
        try:
            return await self._head
        finally:
            self._head = None

    async def receive(self, sink: Sink) -> None:
        """Take the body to its end. Raises `Unreachable` where it is cut, `Corrupt` where it is longer than it said."""
        if self._whole and not self._pending:
            return
        self._sink = sink
        self._body = asyncio.get_running_loop().create_future()
        try:
            if self._drain() and not self._whole:
                self.transport.resume_reading()
            self._settle()
            await self._body
        finally:
            self._sink = self._body = None

    async def skip(self, limit_bytes: int) -> bytes:
        """The body of an answer of which only a little counts, at most so much of it. What is longer ends the
        connection."""
        small = _Small(limit_bytes)
        if self._raw_left is not None and self._raw_left > limit_bytes:
            self.abort()
            return b""
        try:
            await self.receive(small)
        except _Enough:
            self.abort()
        return bytes(small.data)

    def resume(self) -> None:
        """The sink has room again."""
        if self._body is None or self._body.done():
            return
        try:
            if self._drain() and not self._whole and not self.closed.is_set():
                self.transport.resume_reading()
        except SourceError as error:
            self.abort(error)
        self._settle()

    @property
    def round_trip_s(self) -> float | None:
        """The shortest way there and back, as the system has measured it; None where it does not tell."""
        found = self._socket()
        if found is None or not hasattr(socket, "TCP_INFO"):
            return None
        told = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ROUND_TRIP_AT + 4)
        return int.from_bytes(told[_ROUND_TRIP_AT:], sys.byteorder) / 1e6 if len(told) == _ROUND_TRIP_AT + 4 else None

    def limit_buffer(self, size: int) -> None:
        """Let the system keep no more than about so many bytes for us. `TCP_WINDOW_CLAMP` would leave it free to be
        larger where the network needs it, but Linux (6.18) raises that by itself with what is read."""
        found = self._socket()
        if found is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    def _socket(self) -> socket.socket | None:
        found = self.transport.get_extra_info("socket")
        return found if found is not None and found.family in (socket.AF_INET, socket.AF_INET6) else None

    def listen(self) -> None:
        """While idle: an end, or bytes unasked for, close it."""
        self.transport.resume_reading()

    def pause(self) -> None:
        """Read nothing until `resume`."""
        if self._transport is not None and not self.closed.is_set():
            self._transport.pause_reading()

    def abort(self, error: SourceError | None = None) -> None:
        """End it now. Whoever waits for it gets `error`."""
        if self._transport is not None:
            self._transport.abort()
        self._lost(error or Unreachable(f"{self.peer}: the connection was given up"))

    def adopt(self, transport: asyncio.Transport) -> None:
        """Go on over another transport: TLS inside a proxy's tunnel."""
        self._transport = transport

    # -- what asyncio calls -----------------------------------------------------------------------------------------
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def get_buffer(self, sizehint: int) -> memoryview:
        self._direct = False
        if self._raw_left and self._sink is not None and not self._pending:
            room = self._sink.room()
            if room is not None:
                self._direct = True
                return room[: self._raw_left]
        return memoryview(self._scratch)

    def buffer_updated(self, nbytes: int) -> None:
        if self._direct:
            self._took(nbytes)
            return
        try:
            self._read(self._scratch[:nbytes])
        except SourceError as error:
            self.abort(error)

    def eof_received(self) -> bool:
        if self._head is None and not self._whole and self._raw_left is None and not self._chunked:
            self._whole = True  # a body that ends with its connection
            self._keep = False
        self._settle()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        # A body that was received and not yet taken is still whole.
        if not (self._whole and self._body is not None and self._pending):
            self._lost(Unreachable(f"{self.peer}: the connection was cut{f': {exc}' if exc else ''}"))
        self.closed.set()

    # -- what llhttp calls ------------------------------------------------------------------------------------------
    def on_header(self, name: bytes, value: bytes) -> None:
        self._lines += 1
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in self._headers and key in ("content-length", "content-range", "location", "transfer-encoding"):
            raise Unreachable(f"{self.peer}: the header {key} came twice")
        if self._lines > HEAD_LIMIT_LINES:
            raise Unreachable(f"{self.peer}: more than {HEAD_LIMIT_LINES} headers")
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._headers, self._lines, self._head_bytes = {}, 0, 0
            return
        self._keep = self._parser.should_keep_alive()
        bodyless = self._method == "HEAD" or status in (204, 304) or (self._method == "CONNECT" and status == 200)
        length = 0 if bodyless else self._length()
        self._raw_left = length
        self._whole = length == 0
        if self._head is not None and not self._head.done():
            self._head.set_result(Head(status, self._headers, self._length() if bodyless else length))

    def on_body(self, body: bytes) -> None:
        if self._raw_left is not None:
            self._raw_left -= len(body)
        self._pending += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._whole = True

    # -- inside -----------------------------------------------------------------------------------------------------
    @property
    def _chunked(self) -> bool:
        return "transfer-encoding" in self._headers

    def _length(self) -> int | None:
        text = self._headers.get("content-length")
        if text is None or self._chunked:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise Unreachable(f"{self.peer}: its Content-Length cannot be read")
        return int(text)

    def _read(self, data: bytearray) -> None:
        """Heads, chunked bodies, and what came in one piece with a head."""
        if self._raw_left and self._head is None:  # there was no room when it was asked for
            self._raw_left -= len(data)
            self._pending += data
            self._whole = self._raw_left <= 0
            if self._raw_left < 0:
                raise Corrupt(f"{self.peer}: more bytes came than were announced")
        elif self._whole:
            raise Unreachable(f"{self.peer}: bytes came that nobody asked for")
        else:
            self._parse(data)
        if self._drain():
            self._settle()

    def _parse(self, data: bytearray) -> None:
        heading = self._head is not None and not self._head.done()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            raise cause if isinstance(cause, SourceError) else _unreadable(self.peer, error) from error
        if heading:
            self._head_bytes += len(data)
            if self._head is not None and self._head.done():
                self.pause()
            elif self._head_bytes > HEAD_LIMIT_BYTES:
                raise Unreachable(f"{self.peer}: its headers are longer than {HEAD_LIMIT_BYTES} bytes")

    def _took(self, count: int) -> None:
        assert self._sink is not None and self._raw_left is not None  # noqa: S101  so it was when the room was given
        self._raw_left -= count
        self._whole = self._raw_left == 0
        try:
            more = self._sink.filled(count)
        except SourceError as error:
            self.abort(error)
            return
        if not more:
            self.pause()
        self._settle()

    def _drain(self) -> bool:
        """Hand over what is pending. False: the sink has no room; nothing more is read."""
        while self._pending and self._sink is not None:
            room = self._sink.room()
            if room is None:
                self.pause()
                return False
            count = min(len(room), len(self._pending))
            room[:count] = self._pending[:count]
            del self._pending[:count]
            if not self._sink.filled(count):
                self.pause()
                return False
        direct = self._raw_left is not None and not self._whole
        return self._sink is None or not direct or self._sink.room() is not None

    def _settle(self) -> None:
        if self._whole and not self._pending and self._body is not None and not self._body.done():
            self._body.set_result(None)

    def _lost(self, error: SourceError) -> None:
        self.closed.set()
        for waiting in (self._head, self._body):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)


class _Enough(SourceError):
    """What was wanted of a body is there."""


class _Small:
    """Keeps a small body."""

    def __init__(self, limit_bytes: int) -> None:
        self.data = bytearray()
        self._limit = limit_bytes
        self._piece = memoryview(bytearray(16 << 10))

    def room(self) -> memoryview | None:
        return self._piece

    def filled(self, count: int) -> bool:
        self.data += self._piece[:count]
        if len(self.data) > self._limit:
            raise _Enough("longer than wanted")
        return True


def _unreadable(peer: str, error: Any) -> Unreachable:
    return Unreachable(f"{peer}: its answer is no HTTP/1.1: {type(error).__name__}")
