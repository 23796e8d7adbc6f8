"""Chunks and sums from other nodes over HTTP, never by a proxy. Connections are kept; who falls silent is given up."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from schemas.peer import CHUNK_BYTES, Offer
from worker.peers import chunks
from worker.peers.uploads import HAVE, PREFIX, SUMS_AT_ONCE, read_have
from worker.sources import SourceError, Unreachable
from worker.transfer.connection import Connection, Head

CONNECT_TIMEOUT_S: Final = 3.0
PAGE_TIMEOUT_S: Final = 60.0
PAGE_LIMIT_BYTES: Final = 4 << 20
IDLE_S: Final = 20.0
IDLE_LIMIT: Final = 64
HEAD_BYTES: Final = 2048
"""So much is read at a time until the head is there, which is shorter: of the body it takes little along, and that is
what is copied."""
_DIGEST: Final = re.compile(r"sha-256=:([A-Za-z0-9+/=]{44}):")
Place = tuple[str, int]


class PeerFailed(Exception):
    """The node gave nothing: it cannot be reached, fell silent, or answered what it should not."""


class PeerBusy(PeerFailed):
    """It sends as much as it may."""


class PeerLacks(PeerFailed):
    """It has not got the chunk, or not any more."""


class PeerForgot(PeerFailed):
    """Its token is over."""


@dataclass(frozen=True, slots=True)
class Came:
    """A chunk as it came, not compared yet. `have`: what else the node has, None if it did not say. `data` is the
    client's memory: `PeerClient.done_with` gives it back."""

    data: memoryview
    sha256: str
    have: int | None
    memory: bytearray


class PeerClient:
    """Shared by all downloads of a node."""

    def __init__(self, stall_timeout_s: float) -> None:
        self._stall_timeout_s = stall_timeout_s
        self._idle: list[tuple[Place, Connection]] = []
        self._memory: list[bytearray] = []

    async def chunk(self, offer: Offer, key: str, number: int) -> Came:
        """Raises `PeerFailed` and its kinds."""
        start, end = chunks.span(number, offer.size_bytes)
        memory = self._memory.pop() if self._memory else bytearray(CHUNK_BYTES)
        sink = _Chunk(memoryview(memory)[: end - start])
        headers = {"Range": f"bytes={start}-{end - 1}"}
        async with self._asked(offer, f"{PREFIX}{key}", headers) as (connection, head):
            _check(head.status, 206)
            if head.length != end - start:
                raise PeerLacks("it has only a piece of the chunk")
            await self._received(connection, sink)
        have = read_have(head.headers.get(HAVE, ""), chunks.count_of(offer.size_bytes))
        return Came(sink.body, _told(head.headers), have, memory)

    def done_with(self, came: Came) -> None:
        """Nobody reads the chunk any more."""
        self._memory.append(came.memory)

    async def have(self, offer: Offer, key: str) -> int:
        """The chunks that it has now. Raises `PeerFailed` and its kinds."""
        count = chunks.count_of(offer.size_bytes)
        told = await self._page(offer, f"{PREFIX}{key}/chunks?from={count}")
        try:
            return chunks.from_ranges([(int(first), int(last)) for first, last in told["have"]], count)
        except (ValueError, KeyError, TypeError) as error:
            raise PeerFailed("what it has cannot be read") from error

    async def sums(self, offer: Offer, key: str, first: int) -> list[str | None]:
        """The SHA-256 of up to `SUMS_AT_ONCE` chunks from the first on; None for those that it has not got. Raises
        `PeerFailed` and its kinds."""
        told = await self._page(offer, f"{PREFIX}{key}/chunks?from={first}")
        try:
            return [each if isinstance(each, str) else None for each in told["sha256"][:SUMS_AT_ONCE]]
        except (KeyError, TypeError) as error:
            raise PeerFailed("its sums cannot be read") from error

    def close(self) -> None:
        """End idle connections."""
        for _, connection in self._idle:
            connection.abort()
        self._idle.clear()
        self._memory.clear()

    # -- inside ------------------------------------------------------------------------------------------------------
    async def _page(self, offer: Offer, path: str) -> Any:
        try:
            async with self._asked(offer, path, {}) as (connection, head), asyncio.timeout(PAGE_TIMEOUT_S):
                _check(head.status, 200)
                body = await connection.skip(PAGE_LIMIT_BYTES)
            return orjson.loads(body)
        except TimeoutError as error:
            raise PeerFailed(f"no page in {PAGE_TIMEOUT_S:g} s") from error
        except ValueError as error:
            raise PeerFailed("its page cannot be read") from error

    @asynccontextmanager
    async def _asked(
        self, offer: Offer, path: str, headers: Mapping[str, str]
    ) -> AsyncGenerator[tuple[Connection, Head]]:
        """The head of an answer; its body is taken inside, or the connection goes."""
        place, prefix = _place(offer.url)
        told = {"Host": f"{place[0]}:{place[1]}", "Authorization": f"Bearer {offer.token}", **headers}
        try:
            connection, head = await self._sent(place, f"{prefix}{path}", told)
            try:
                yield connection, head
            except BaseException:
                connection.abort()
                raise
        except SourceError as error:
            raise PeerFailed(error.message) from error
        self._keep(place, connection)

    async def _sent(self, place: Place, target: str, headers: Mapping[str, str]) -> tuple[Connection, Head]:
        connection = self._kept(place) or await _dial(place)
        try:
            return connection, await self._request(connection, target, headers)
        except SourceError:
            if not connection.used:
                raise
        connection = await _dial(place)  # one that was kept had been closed at the other end
        return connection, await self._request(connection, target, headers)

    async def _request(self, connection: Connection, target: str, headers: Mapping[str, str]) -> Head:
        # a plain timer: to wait with a task or a time-out of its own costs as much as the rest of a chunk
        late = Unreachable(f"no answer in {self._stall_timeout_s:g} s")
        timer = asyncio.get_running_loop().call_later(self._stall_timeout_s, connection.abort, late)
        try:
            return await connection.request("GET", target, headers)
        except SourceError as error:
            connection.abort()
            if error is late:  # a connection that was kept is no reason to try again
                raise PeerFailed(late.message) from error
            raise
        except BaseException:
            connection.abort()
            raise
        finally:
            timer.cancel()

    async def _received(self, connection: Connection, sink: _Chunk) -> None:
        loop, stall_s = asyncio.get_running_loop(), self._stall_timeout_s

        def look(before: int) -> None:
            nonlocal timer
            if sink.at == before:
                connection.abort(Unreachable(f"nothing came for {stall_s:g} s"))
            else:
                timer = loop.call_later(stall_s, look, sink.at)

        timer = loop.call_later(stall_s, look, sink.at)
        try:
            await connection.receive(sink)
        finally:
            timer.cancel()

    def _kept(self, place: Place) -> Connection | None:
        now = asyncio.get_running_loop().time()
        for at, (kept, connection) in reversed(list(enumerate(self._idle))):
            if kept == place:
                del self._idle[at]
                if connection.usable and now - connection.idle_since_s < IDLE_S:
                    return connection
                connection.abort()
        return None

    def _keep(self, place: Place, connection: Connection) -> None:
        if not connection.usable:
            connection.abort()
            return
        connection.used, connection.idle_since_s = True, asyncio.get_running_loop().time()
        connection.listen()
        self._idle.append((place, connection))
        if len(self._idle) > IDLE_LIMIT:
            self._idle.pop(0)[1].abort()


class _Connection(Connection):
    """Bodies come straight into memory, from near their first byte on."""

    def get_buffer(self, sizehint: int) -> memoryview:
        room = super().get_buffer(sizehint)
        return room if self._direct else room[:HEAD_BYTES]


class _Chunk:
    """Takes one chunk straight into memory of its size."""

    def __init__(self, body: memoryview) -> None:
        self.body = body
        self.at = 0

    def room(self) -> memoryview | None:
        return self.body[self.at :]

    def filled(self, count: int) -> bool:
        self.at += count
        return True


async def _dial(place: Place) -> Connection:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, made = await loop.create_connection(lambda: _Connection(f"{place[0]}:{place[1]}"), *place)
            return made
    except TimeoutError as error:
        raise PeerFailed(f"no connection in {CONNECT_TIMEOUT_S:g} s") from error
    except OSError as error:
        raise PeerFailed(f"no connection: {error.strerror or error}") from error


def _place(url: str) -> tuple[Place, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise PeerFailed("its URL cannot be read") from error
    if parts.scheme != "http" or not host or not re.fullmatch(r"[!-~]*", parts.path):
        raise PeerFailed("its URL is none of http://HOST:PORT")
    return (host, port), parts.path.rstrip("/")


def _check(status: int, wanted: int) -> None:
    if status == 503:
        raise PeerBusy("it sends as much as it may")
    if status in (404, 416):
        raise PeerLacks(f"it answered {status}")
    if status == 401:
        raise PeerForgot("its token is over")
    if status != wanted:
        raise PeerFailed(f"it answered {status}")


def _told(headers: Mapping[str, str]) -> str:
    hit = _DIGEST.fullmatch(headers.get("content-digest", ""))
    try:
        return base64.b64decode(hit[1] if hit else "-", validate=True).hex()
    except binascii.Error as error:
        raise PeerFailed("it told no checksum of the chunk") from error
