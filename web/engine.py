"""One connection to an engine: a request goes out, and its answer is handed on as it comes.

What one read gave is handed on as one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools

from web import tcp
from web.call import BadAnswer, Call, ConnectionCut

HEAD_LIMIT_BYTES: Final = 65536


class Owner(Protocol):
    """Who keeps the sockets between two requests."""

    def released(self, socket: EngineSocket) -> None:
        """The answer is whole, and the socket can take another request."""
        ...

    def lost(self, socket: EngineSocket) -> None:
        """The socket closed."""
        ...

    def repeat(self, call: Call) -> None:
        """A used socket died before the first byte of the answer: send the request again on a new one."""
        ...


class EngineSocket(asyncio.Protocol):
    """One connection to an engine; one call at a time. Methods named `on_…` are llhttp's callbacks."""

    _transport: asyncio.Transport

    def __init__(self, owner: Owner, on_open: Callable[[EngineSocket], None], *, spare: bool = False) -> None:
        self._owner = owner
        self._on_open: Callable[[EngineSocket], None] | None = on_open
        self._parser: httptools.HttpResponseParser | None = None
        self._call: Call | None = None
        self.spare = spare
        """Opened ahead of any request: like a used one, it may have been closed at the other end by now."""
        self._used = spare
        self._held = False
        self._closed = False
        self.idle_since = 0.0

    def send(self, call: Call) -> None:
        """Send the call's request and hand the answer to its sink."""
        self._call = call
        call.socket = self
        tcp.write_at_once(self._transport, call.request)
        self._parser = httptools.HttpResponseParser(self)
        self._reset_head()
        self._raw_bytes = 0
        self._status = 0
        self._head_told = False
        self._lasting = False
        self._complete = False
        self._body: list[bytes] = []
        if call.paused:
            # Not at once: a transport that has just connected starts to read after its protocol was told.
            asyncio.get_running_loop().call_soon(self._hold_paused)

    def _hold_paused(self) -> None:
        if self._call is not None and self._call.paused:
            self.hold(True)

    def _reset_head(self) -> None:
        self._headers: dict[str, str] = {}

    def hold(self, held: bool) -> None:
        """Stop or go on reading."""
        if held is self._held or self._closed:
            return
        self._held = held
        if held:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close at once; nothing more is read."""
        self._call = None
        self._let_go()
        self._transport.abort()

    def _let_go(self) -> None:
        """The end. The parser knows us: without that cycle we go without the garbage collector, which may be long."""
        self._closed = True
        self._parser = None

    @property
    def open(self) -> bool:
        """Whether a request can be sent on it."""
        return not self._closed and not self._transport.is_closing()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        on_open, self._on_open = self._on_open, None  # it knows a call, and with it an answer
        if on_open is not None:
            on_open(self)

    def data_received(self, data: bytes) -> None:
        call = self._call
        if call is None:
            self.close()  # an answer that nobody asked for
            return
        self._raw_bytes += len(data)
        fault = self._parse(data)
        try:
            self._hand_on(call)
        except Exception as error:  # noqa: BLE001 - whatever a sink raises ends this one call, and is told to it
            fault = error
        if fault is not None and not call.done:
            call.fail(fault)

    def eof_received(self) -> None:
        self._finish(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        self._owner.lost(self)
        self._finish(exc)

    # parsing

    def _parse(self, data: bytes) -> Exception | None:
        if self._parser is None:
            return None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return BadAnswer("the engine switched to another protocol")
        except httptools.HttpParserError as error:
            return None if self._complete else BadAnswer(f"the engine's answer is not HTTP: {error}")
        if not self._status and self._raw_bytes > HEAD_LIMIT_BYTES:
            return BadAnswer(f"the head of the engine's answer is over {HEAD_LIMIT_BYTES} bytes")
        return None

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # a trailer
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        if self._complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._reset_head()
            return
        self._status = status
        self._lasting = self._parser.should_keep_alive()
        self._complete = self._call is not None and self._call.bodiless

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status:
            self._complete = True

    # handing on

    def _hand_on(self, call: Call) -> None:
        if self._status and not self._head_told:
            self._head_told = True
            call.head_arrived()
            call.sink.head(self._status, self._headers)
        body = self._body
        if body and not call.done:
            data = body[0] if len(body) == 1 else b"".join(body)
            body.clear()
            call.sink.data(data)
        if self._complete and not call.done:
            self._end(call)

    def _end(self, call: Call) -> None:
        call.close()
        call.socket = self._call = None
        if self._reusable(call):
            self._used = True
            self.hold(False)
            self._owner.released(self)
        else:
            self.close()
        call.sink.end()

    def _reusable(self, call: Call) -> bool:
        """Only after an answer with a length: real engines close after a stream while their headers promise not to."""
        return self._lasting and self.open and "content-length" in self._headers and not call.bodiless

    def _finish(self, cause: Exception | None) -> None:
        call, self._call = self._call, None
        if call is None or call.done:
            return
        if self._until_close() and cause is None:
            call.close()
            call.drop_socket()
            call.sink.end()
        elif self._used and not self._raw_bytes:
            call.socket = None
            self._owner.repeat(call)
        else:
            what = "in the middle of its answer" if self._raw_bytes else "before it answered"
            call.fail(ConnectionCut(f"the engine closed the connection {what}"))

    def _until_close(self) -> bool:
        """Whether the end of the connection is the end of this answer."""
        length = "content-length" in self._headers or "transfer-encoding" in self._headers
        return bool(self._status) and not length
