"""The worker's HTTP page of files: `GET /v1/blobs/<key>` with `Range`, and `/chunks` with what is there and its sums.

Whoever has a token for a file may take it. Bytes are read in threads, a chunk at a time, and the next one when the last
was taken; so a slow reader costs one chunk of memory. A part is served as far as its journal says that it is there.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from schemas.errors import AuthenticationFailed, MethodNotAllowed, NotFound, Unavailable
from schemas.peer import CHUNK_BYTES
from web import Exchange, Header
from web.keys import presented
from worker.peers import chunks
from worker.peers.hands import Hands
from worker.peers.holdings import Held, Holdings
from worker.peers.metrics import PeerWatch
from worker.peers.tokens import Tokens
from worker.transfer.limits import TokenBucket

PREFIX: Final = "/v1/blobs/"
SUMS_AT_ONCE: Final = 256
HAVE: Final = "puna-chunks"
"""Header: the chunks that are there, `0-57,60-61`, the second number of a run not included; at most `RUNS_TOLD`."""
RUNS_TOLD: Final = 64
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_BYTES: Final = "application/octet-stream"
Run = Callable[[str, Coroutine[Any, Any, None]], object]


@dataclass(frozen=True, slots=True)
class _Found:
    """An answer: `span` None is a range that is not to be had; with `data` its one chunk was read already."""

    held: Held
    span: tuple[int, int] | None
    status: int
    data: bytes | None = None
    sha256: str | None = None


class Uploads:
    """`run` starts a named task. `active`: chunks and ranges that are on their way out."""

    def __init__(
        self,
        holdings: Holdings,
        tokens: Tokens,
        hands: Hands,
        run: Run,
        *,
        max_uploads: int,
        bytes_per_s: int | None,
        watch: PeerWatch,
    ) -> None:
        self.active = 0
        self._holdings = holdings
        self._tokens = tokens
        self._hands = hands
        self._run = run
        self._max = max_uploads
        self._watch = watch
        self._bucket = TokenBucket(bytes_per_s) if bytes_per_s else None
        # with a limit it comes in small pieces, so that each of those who wait sees that it goes on
        self._piece_bytes = min(max(bytes_per_s // 20, 4096), CHUNK_BYTES) if bytes_per_s else CHUNK_BYTES

    def handle(self, exchange: Exchange, headers: Sequence[Header]) -> None:
        """Answer a request below `PREFIX`. Raises a `PunaError` for one that is refused at once."""
        request = exchange.request
        if request.method != "GET":
            raise MethodNotAllowed(f"{PREFIX} takes GET")
        key, _, page = request.path.removeprefix(PREFIX).partition("/")
        if not self._tokens.good(key, presented(request.headers)):
            raise AuthenticationFailed("no token for this file, or it is over; ask again over NATS")
        if page not in ("", "chunks"):
            raise NotFound("below a file there is /chunks only")
        if self.active >= self._max:
            raise Unavailable("this node sends as much as it may; ask another one")
        self.active += 1
        work = self._bytes(exchange, key, headers) if not page else self._chunks(exchange, key, headers)
        self._run(f"upload {key[:16]}", self._counted(work))

    async def _counted(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        finally:
            self.active -= 1

    # -- bytes -------------------------------------------------------------------------------------------------------
    async def _bytes(self, exchange: Exchange, key: str, headers: Sequence[Header]) -> None:
        text = exchange.request.headers.get("range")
        found = await self._hands.do(lambda: self._found(key, text))
        if found is None:
            _refuse(exchange, NotFound("this file is not here any more"), headers)
        elif found.span is None:
            told = [*headers, ("content-range", f"bytes */{found.held.size_bytes}")]
            exchange.respond(416, b"", content_type=_BYTES, headers=told)
        else:
            await self._send(exchange, found, found.span, [*headers, *_told(key, found)])

    def _found(self, key: str, text: str | None) -> _Found | None:
        """What is asked for; a whole chunk is read at once."""
        held = self._holdings.look(key)
        if held is None:
            return None
        span, status = _asked(text, held), 206 if text else 200
        if span is None:
            return _Found(held, None, status)
        number = span[0] // CHUNK_BYTES
        if span != chunks.span(number, held.size_bytes):
            return _Found(held, span, status)
        chunk = self._holdings.chunk(key, held, number)
        return _Found(held, span, status, *chunk) if chunk is not None else None

    async def _send(self, exchange: Exchange, found: _Found, span: tuple[int, int], headers: Sequence[Header]) -> None:
        drained = asyncio.Event()
        exchange.on_drained = exchange.on_closed = drained.set
        exchange.widen(self._piece_bytes)
        for start in range(span[0], span[1], CHUNK_BYTES):
            data = found.data or await self._read(found.held, start, min(start + CHUNK_BYTES, span[1]))
            if data is None:
                exchange.abort()
                return
            if not exchange.started:
                exchange.start(found.status, content_type=_BYTES, headers=headers, length=span[1] - span[0])
            for at in range(0, len(data), self._piece_bytes):
                piece = data[at : at + self._piece_bytes]
                await self._spend(len(piece))
                drained.clear()
                exchange.write(piece)
                if not exchange.writable and not exchange.closed:
                    await drained.wait()
        exchange.finish()

    async def _read(self, held: Held, start: int, end: int) -> bytes | None:
        return await self._hands.do(lambda: self._holdings.read(held, start, end))

    async def _spend(self, count: int) -> None:
        self._watch.sent(count)
        if self._bucket is not None and (wait_s := self._bucket.take(count)) > 0:
            await asyncio.sleep(wait_s)

    # -- chunks ------------------------------------------------------------------------------------------------------
    async def _chunks(self, exchange: Exchange, key: str, headers: Sequence[Header]) -> None:
        held = await self._hands.do(lambda: self._holdings.look(key))
        if held is None:
            _refuse(exchange, NotFound("this file is not here any more"), headers)
            return
        first = exchange.request.query.get("from", "0")
        at = int(first) if first.isdecimal() and len(first) < 10 else 0
        sums = await self._hands.do(lambda: self._sums(key, held, at))
        told = {
            "size_bytes": held.size_bytes,
            "chunk_bytes": CHUNK_BYTES,
            "complete": held.complete,
            "have": chunks.to_ranges(held.have),
            "from": at,
            "sha256": sums,
        }
        exchange.respond(200, orjson.dumps(told), headers=headers)

    def _sums(self, key: str, held: Held, at: int) -> list[str | None]:
        numbers = range(at, min(at + SUMS_AT_ONCE, chunks.count_of(held.size_bytes)))
        return [self._holdings.chunk_sum(key, held, number) if held.have >> number & 1 else None for number in numbers]


def have_text(have: int) -> str:
    """The value of the header `HAVE`."""
    return ",".join(f"{first}-{last}" for first, last in chunks.to_ranges(have)[:RUNS_TOLD])


def read_have(text: str, count: int) -> int | None:
    """The chunks that the header names; None for one that cannot be read."""
    try:
        runs = [(int(first), int(last)) for first, _, last in (run.partition("-") for run in text.split(",") if run)]
    except ValueError:
        return None
    return chunks.from_ranges(runs, count)


def _asked(text: str | None, held: Held) -> tuple[int, int] | None:
    """The first byte and the one after the last; None where that is not to be had. Of what is asked for, as much is
    given as is there without a gap from its beginning."""
    size = held.size_bytes
    if text is None:
        return (0, size) if held.have == chunks.all_of(size) else None
    hit = _RANGE.fullmatch(text.strip())
    if hit is None or (not hit[1] and not hit[2]):
        return None
    start = int(hit[1]) if hit[1] else max(size - int(hit[2]), 0)
    end = min(int(hit[2]) + 1, size) if hit[1] and hit[2] else size
    end = min(end, chunks.spans_of(held.have, size).reach(start))
    return (start, end) if start < end else None


def _told(key: str, found: _Found) -> list[Header]:
    told = [("accept-ranges", "bytes"), (HAVE, have_text(found.held.have)), ("etag", f'"{key}"')]
    if found.status == 206 and found.span is not None:
        told.append(("content-range", f"bytes {found.span[0]}-{found.span[1] - 1}/{found.held.size_bytes}"))
    if found.sha256 is not None:
        told.append(("content-digest", f"sha-256=:{base64.b64encode(bytes.fromhex(found.sha256)).decode()}:"))
    return told


def _refuse(exchange: Exchange, error: NotFound, headers: Sequence[Header]) -> None:
    exchange.respond(error.http_status, error.body(), headers=headers)
