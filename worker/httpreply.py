"""A reply over the worker's own HTTP. Until the engine's first data nothing is sent, so an early failure has a real
status; a stream that waits long gets comments, and after those a failure is an event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from schemas.errors import Cancelled, PunaError
from web import Exchange, Header
from web.headers import remedy_headers
from worker.inference import SSE
from worker.reply import Flow, Summary

KEEP_ALIVE_S: Final = 15.0
KEEP_ALIVE: Final = b": keep-alive\n\n"
_SSE_HEADERS: Final[tuple[Header, ...]] = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))


class HttpReply:
    """One answer to one HTTP client. `on_left` is called if it leaves before the engine was asked."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        stream: bool,
        headers: list[Header],
        clock: Callable[[], float],
        on_left: Callable[[], object],
    ) -> None:
        self._exchange = exchange
        self._stream = stream
        self._headers = headers
        self._clock = clock
        self._on_left = on_left
        self._flow: Flow | None = None
        self._status = 200
        self._content_type = "application/json"
        self._body: list[bytes] = []
        self._streaming = False
        self._said_at = clock()
        exchange.on_closed = self._left

    def begin(self, flow: Flow) -> None:
        """From here on the client's pace is the engine's."""
        self._flow = flow
        self._exchange.on_drained = flow.resume

    def open(self, status: int, content_type: str) -> None:
        """The engine's head is kept until there is data."""
        self._status, self._content_type = status, content_type
        self._streaming = status == 200 and content_type.startswith(SSE)

    def data(self, data: bytes) -> None:
        """Of a stream: out with it. Else: kept for one response with a length."""
        if not self._streaming:
            self._body.append(data)
            return
        self._start()
        self._said_at = self._clock()
        self._exchange.write(data)
        if not self._exchange.writable and self._flow is not None:
            self._flow.pause()

    def end(self, summary: Summary) -> None:
        """The answer is whole."""
        if self._streaming or self._exchange.started:
            self._start()
            self._exchange.write(b"".join(self._body))
            self._exchange.finish()
        else:
            self._respond(self._status, b"".join(self._body), self._content_type, [])

    def error(self, error: PunaError) -> None:
        """A real status if nothing was sent yet, else an event and the end without `[DONE]`."""
        if self._exchange.closed or self._exchange.finished:
            return
        if self._exchange.started:
            self._exchange.write(b"data: " + error.body() + b"\n\n")
            self._exchange.finish()
        else:
            self._respond(error.http_status, error.body(), "application/json", remedy_headers(error))

    def tick(self, now: float) -> bool:
        """A stream that is silent for long gets a comment."""
        if self._stream and now - self._said_at >= KEEP_ALIVE_S and not self._exchange.finished:
            self._start()
            self._said_at = now
            self._exchange.write(KEEP_ALIVE)
        return not self._exchange.finished

    def _start(self) -> None:
        if not self._exchange.started:
            self._exchange.start(200, content_type=SSE, headers=[*self._headers, *_SSE_HEADERS])

    def _respond(self, status: int, body: bytes, content_type: str, extra: list[Header]) -> None:
        self._exchange.respond(status, body, content_type=content_type, headers=[*self._headers, *extra])

    def _left(self) -> None:
        if self._flow is not None:
            self._flow.abandon(Cancelled("the client left"))
        else:
            self._on_left()
