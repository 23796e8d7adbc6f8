"""Bytes in, whole requests out, or the one reason why there will be none.

llhttp is strict as it is used here (no folded lines, no bare LF, no duplicate or conflicting lengths); this adds the
limits. After a refusal nothing more of the connection is looked at: what follows cannot be told apart safely.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Protocol, cast

import httptools

from schemas.errors import InvalidRequest, PunaError
from web.faults import body_too_large, head_fault, headers_too_large, malformed
from web.limits import READ_PIECE_BYTES, Limits
from web.message import BadTarget, Request, split_target

_CHUNK_OVERHEAD: Final = 8
"""Bytes on the wire for one of the body in the smallest chunks; more is padding in chunk extensions or trailers."""
_NOTHING: Final = memoryview(b"")
_JOINABLE: Final = {"cookie": "; "}
_SINGLE: Final = frozenset(("host", "content-length", "transfer-encoding", "content-type", "authorization"))


class Phase(IntEnum):
    """Where in a request the input stands."""

    IDLE = 0
    HEAD = 1
    BODY = 2


class Receiver(Protocol):
    """Takes what a reader finds."""

    def received(self, request: Request) -> bool:
        """A whole request. False: parse no more for now."""
        ...

    def refused(self, error: PunaError) -> None:
        """No further request will come; `error` is the answer to what stands there."""
        ...

    def expects_continue(self) -> None:
        """The client waits for `100 Continue` before it sends its body."""
        ...


class RequestReader:
    """Parses one connection's input. Methods named `on_…` are llhttp's callbacks."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_header_bytes",
        "_header_lines",
        "_headers",
        "_held",
        "_limits",
        "_parser",
        "_parsing",
        "_peer",
        "_raw_bytes",
        "_receiver",
        "_refusal",
        "_rest",
        "_target",
        "ended",
        "messages",
        "phase",
    )

    def __init__(self, limits: Limits, peer: str, receiver: Receiver) -> None:
        self.phase = Phase.IDLE
        self.messages = 0
        """Requests begun so far."""
        self.ended = False
        """Nothing more will be parsed: a refusal, or the client's last request."""
        self._limits = limits
        self._peer = peer
        self._receiver = receiver
        self._parser = httptools.HttpRequestParser(self)
        self._refusal: PunaError | None = None
        self._rest = _NOTHING
        self._parsing = False
        self._held = False
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._header_lines = 0
        self._header_bytes = 0
        self._raw_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0

    @property
    def unread(self) -> bool:
        """The client has sent, or is sending, something that was not handed over."""
        return self.phase is not Phase.IDLE or len(self._rest) > 0 or self._refusal is not None

    @property
    def headers(self) -> Mapping[str, str]:
        """Those of the request under way, as far as they were read."""
        return {} if self.phase is Phase.IDLE else self._headers

    def feed(self, data: bytes) -> None:
        """Parse what the socket gave."""
        if self.ended:
            return
        if not self._held and len(data) <= READ_PIECE_BYTES:
            self._piece(data)
            return
        self._rest = memoryview(bytes(self._rest) + data if self._rest else data)
        self._parse_rest()

    def hold(self) -> None:
        """Keep further input unparsed."""
        self._held = True

    def resume(self) -> None:
        """Parse on after `hold`."""
        self._held = False
        self._parse_rest()

    def _parse_rest(self) -> None:
        if self._parsing:
            return
        self._parsing = True
        try:
            while self._rest and not self._held and not self.ended:
                piece, self._rest = self._rest[:READ_PIECE_BYTES], self._rest[READ_PIECE_BYTES:]
                self._piece(piece)
        finally:
            self._parsing = False

    def _piece(self, piece: bytes | memoryview) -> None:
        before, phase = self.messages, self.phase
        try:
            self._feed_parser(piece)
        except httptools.HttpParserError as error:
            self._refuse(malformed(error))
        if self._refusal is None and self.phase is not Phase.IDLE:
            alone = self.messages == before or (phase is Phase.IDLE and self.messages == before + 1)
            self._count(len(piece) if alone else 0)
        if self._refusal is not None and not self.ended:
            self.ended = True
            self._rest = _NOTHING
            self._receiver.refused(self._refusal)

    def _feed_parser(self, piece: bytes | memoryview) -> None:
        while True:
            try:
                self._parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                # An offered upgrade is declined by answering in HTTP/1.1 as if it had not been offered.
                piece = piece[cast(int, upgrade.args[0]) :]
                if not piece:
                    return
            else:
                return

    def _count(self, size: int) -> None:
        """Bound what is neither header nor body: an endless header line, chunk extensions, trailers."""
        self._raw_bytes += size
        limit = self._limits.header_bytes
        if self._raw_bytes > limit + self._body_bytes * _CHUNK_OVERHEAD + READ_PIECE_BYTES * (self.phase is Phase.BODY):
            self._refuse(headers_too_large(self._limits))

    def _refuse(self, error: PunaError) -> None:
        if self._refusal is None:
            self._refusal = error

    def on_message_begin(self) -> None:
        if self._refusal is None:
            self.messages += 1
            self.phase = Phase.HEAD
            self._reset()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._header_bytes += len(url)
        if self._header_bytes > self._limits.header_bytes:
            self._refuse(headers_too_large(self._limits))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + 4
        self._header_lines += 1
        if self._header_bytes > self._limits.header_bytes or self._header_lines > self._limits.headers:
            self._refuse(headers_too_large(self._limits))
        if self._refusal is not None or self.phase is Phase.BODY:
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key in self._headers:
            if key in _SINGLE:
                self._refuse(InvalidRequest(f"the header {key} is given twice"))
            text = self._headers[key] + _JOINABLE.get(key, ", ") + text
        self._headers[key] = text

    def on_headers_complete(self) -> None:
        self.phase = Phase.BODY
        fault = head_fault(self._parser.get_method(), self._parser.get_http_version(), self._headers, self._limits)
        if fault is not None:
            self._refuse(fault)
        waits = self._headers.get("expect", "").lower() == "100-continue"
        if waits and self._refusal is None and self._parser.get_http_version() == "1.1":
            self._receiver.expects_continue()

    def on_body(self, body: bytes) -> None:
        if self._refusal is not None:
            return
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._body.clear()
            self._refuse(body_too_large(self._limits))
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._refusal is not None or self.ended:
            return
        try:
            path, query = split_target(self._target)
        except BadTarget as error:
            self._refuse(InvalidRequest(str(error)))
            return
        self.phase = Phase.IDLE
        request = self._request(path, query)
        self._body = []
        self.ended = not request.keep_alive
        if not self._receiver.received(request):
            self._held = True

    def _request(self, path: str, query: dict[str, str]) -> Request:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        return Request(
            method=self._parser.get_method().decode("ascii"),
            path=path,
            query=query,
            headers=self._headers,
            body=body,
            peer=self._peer,
            target=self._target.decode("latin-1"),
            http10=self._parser.get_http_version() == "1.0",
            keep_alive=self._parser.should_keep_alive(),
        )
