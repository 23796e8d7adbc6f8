"""An HTTP/1.1 client for one engine on the loopback."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from web.call import AnswerTooLarge, Call, CallFailed, CallTimeout, ConnectFailed, Sink
from web.engine import EngineSocket
from web.message import Header, render_headers

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_LIMIT_BYTES: Final = 8 << 20
POOL_LIMIT: Final = 32
POOL_IDLE_S: Final = 4.0
"""Engines close an idle connection after five seconds; one is not used when it is nearly that old."""
SPARE_AFTER_S: Final = 0.02
"""When the next request's socket is opened: not while the present request is being started."""
_TARGET: Final = re.compile(r"[!-~]+")
_METHOD: Final = re.compile(r"[A-Z]+")


class Response(NamedTuple):
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Client:
    """Requests to one engine. `headers` go with each of them.

    Sockets are kept for further requests after answers with a length only; a request on a kept socket that dies
    before the first byte is repeated once on a new one. `spare` keeps one socket open for the request to come.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        headers: Sequence[Header] = (),
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        spare: bool = False,
    ) -> None:
        self._host = host
        self._port = port
        self._connect_timeout_s = connect_timeout_s
        named = f"[{host}]" if ":" in host else host
        self._common = f"host: {named}:{port}\r\n".encode("ascii") + render_headers(headers)
        self._idle: list[EngineSocket] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._spare = spare
        self._spare_opening = False

    def stream(
        self,
        method: str,
        path: str,
        body: bytes,
        sink: Sink,
        *,
        headers: Sequence[Header] = (),
        content_type: str = "application/json",
        head_timeout_s: float | None = None,
    ) -> Call:
        """Send a request; the answer goes to `sink`, never before this returns.

        Raises `ValueError` for a method, path or header that cannot stand in a request.
        """
        request = self._render(method, path, body, headers, content_type)
        call = Call(request, sink, bodiless=method == "HEAD", head_timeout_s=head_timeout_s)
        socket = self._take_idle()
        if socket is not None:
            socket.send(call)
        else:
            self.repeat(call)
        if self._spare and not self._idle:
            asyncio.get_running_loop().call_later(SPARE_AFTER_S, self._open_spare)
        return call

    async def fetch(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        timeout_s: float,
        headers: Sequence[Header] = (),
        content_type: str = "application/json",
        limit_bytes: int = ANSWER_LIMIT_BYTES,
    ) -> Response:
        """The whole answer.

        Raises `CallTimeout` after `timeout_s`, `AnswerTooLarge` over `limit_bytes`, else `CallFailed`.
        """
        sink = _Collector(limit_bytes)
        call = self.stream(method, path, body, sink, headers=headers, content_type=content_type)
        try:
            async with asyncio.timeout(timeout_s):
                return await sink.response
        except TimeoutError as error:
            raise CallTimeout(f"no whole answer to {method} {path.partition('?')[0]} in {timeout_s:g} s") from error
        finally:
            call.abort()

    def close(self) -> None:
        """Close the sockets that nobody uses. Calls under way go on."""
        self._spare = False
        idle, self._idle = self._idle, []
        for socket in idle:
            socket.close()

    # the sockets

    def released(self, socket: EngineSocket) -> None:
        """Keep a socket for the next request."""
        if len(self._idle) >= POOL_LIMIT or (socket.spare and not self._spare):
            socket.close()
            return
        socket.idle_since = asyncio.get_running_loop().time()
        self._idle.append(socket)

    def lost(self, socket: EngineSocket) -> None:
        """Forget a socket that closed."""
        if socket in self._idle:
            self._idle.remove(socket)

    def repeat(self, call: Call) -> None:
        """Send the call's request on a new socket."""
        task = asyncio.get_running_loop().create_task(self._connect(call), name=f"connect {self._host}:{self._port}")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def _open_spare(self) -> None:
        if self._idle or self._spare_opening or not self._spare:
            return
        self._spare_opening = True
        task = asyncio.get_running_loop().create_task(self._connect_spare(), name=f"spare {self._host}:{self._port}")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect_spare(self) -> None:
        """A socket for the next request. Where none can be had, that request will hear why."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: EngineSocket(self, self.released, spare=True), self._host, self._port
                )
        except (OSError, TimeoutError) as error:
            log.debug("no_spare", extra={"event": "no_spare", "reason": type(error).__name__})
        finally:
            self._spare_opening = False

    def _take_idle(self) -> EngineSocket | None:
        freshest = asyncio.get_running_loop().time() - POOL_IDLE_S
        while self._idle:
            socket = self._idle.pop()
            if socket.open and socket.idle_since > freshest:
                return socket
            socket.close()
        return None

    async def _connect(self, call: Call) -> None:
        loop = asyncio.get_running_loop()

        def opened(socket: EngineSocket) -> None:
            if call.done:
                socket.close()
            else:
                socket.send(call)

        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.create_connection(lambda: EngineSocket(self, opened), self._host, self._port)
        except (OSError, TimeoutError) as error:
            reason = error.strerror or "no answer in time"
            call.fail(ConnectFailed(f"cannot connect to the engine at {self._host}:{self._port}: {reason}"))

    def _render(self, method: str, path: str, body: bytes, headers: Sequence[Header], content_type: str) -> bytes:
        framing = b""
        if body or method == "POST":
            framing = b"content-type: %b\r\ncontent-length: %d\r\n" % (content_type.encode("latin-1"), len(body))
        return b"%b%b%b%b\r\n%b" % (_opening(method, path), self._common, render_headers(headers), framing, body)


@lru_cache(maxsize=64)
def _opening(method: str, path: str) -> bytes:
    if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(path):
        raise ValueError("the method or the path holds a character that none may hold")
    return f"{method} {path} HTTP/1.1\r\n".encode("ascii")


class _Collector:
    """A sink that gathers one answer."""

    def __init__(self, limit_bytes: int) -> None:
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._limit_bytes = limit_bytes
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._parts: list[bytes] = []
        self._size = 0

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self._status, self._headers = status, headers

    def data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit_bytes:
            raise AnswerTooLarge(f"the engine's answer is over {self._limit_bytes} bytes")
        self._parts.append(data)

    def end(self) -> None:
        if not self.response.done():
            self.response.set_result(Response(self._status, self._headers, b"".join(self._parts)))

    def failed(self, error: Exception) -> None:
        if not self.response.done():
            self.response.set_exception(error if isinstance(error, CallFailed) else CallFailed(str(error)))
