"""One answer to one client, as HTTP: whole or as server-sent events. Nothing is sent before it must be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from schemas.errors import PunaError
from web import Exchange, Header
from web.headers import remedy_headers

SSE: Final = "text/event-stream"
_SSE_HEADERS: Final[tuple[Header, ...]] = (("cache-control", "no-cache"), ("x-accel-buffering", "no"))
_NAMED_ERRORS: Final = frozenset(("messages", "responses"))
"""Operations whose events carry a name, errors too."""
KEEP_ALIVE: Final = b": keep-alive\n\n"


class Answer:
    """What a stream of frames becomes for the client.

    The 200 of an SSE answer goes out with its first event or with the first keep-alive. Before that a failure is a
    real 4xx or 5xx; after it, an SSE error event and the end without `[DONE]`.
    """

    __slots__ = ("_exchange", "_op", "headers", "status", "write")

    def __init__(self, exchange: Exchange, op: str, headers: list[Header]) -> None:
        self.headers = headers
        """Sent with the head; what becomes known before it goes out may be added."""
        self.status = 0
        """What the client was told; 0: nothing yet."""
        self.write: Callable[[bytes], None] = exchange.write
        self._exchange = exchange
        self._op = op

    @property
    def begun(self) -> bool:
        """The head is out."""
        return self.status != 0

    @property
    def buffered_bytes(self) -> int:
        """What the client has not taken yet."""
        return self._exchange.buffered_bytes

    def begin(self) -> None:
        """The head of an SSE answer, if it is not out."""
        if not self.status:
            self.status = 200
            self._exchange.start(200, content_type=SSE, headers=[*self.headers, *_SSE_HEADERS])

    def keep_alive(self) -> None:
        """An SSE comment: the request waits, the connection lives."""
        self.begin()
        self.write(KEEP_ALIVE)

    def forget(self) -> None:
        """The request is over: the exchange may go without waiting for the garbage collector."""
        self._exchange.on_closed = None

    def finish(self) -> None:
        """The last event was written."""
        self._exchange.finish()

    def whole(self, status: int, content_type: str, body: bytes) -> None:
        """The answer as it came, in one piece. After a keep-alive its body can only be an event."""
        if self.status:
            self._event(body)
            return
        self.status = status
        self._exchange.respond(status, body, content_type=content_type, headers=self.headers)

    def fail(self, error: PunaError) -> None:
        """An error of ours."""
        self.refuse(error.http_status, error.body(), remedy_headers(error))

    def refuse(self, status: int, body: bytes, extra: list[Header]) -> None:
        """An error with its own status and body."""
        if not self.status:
            self.headers += extra
        self.whole(status, "application/json", body)

    def _event(self, body: bytes) -> None:
        name = b"event: error\n" if self._op in _NAMED_ERRORS else b""
        lines = body.replace(b"\r", b"").replace(b"\n", b"\ndata: ")
        self.write(name + b"data: " + lines + b"\n\n")
        self._exchange.finish()
