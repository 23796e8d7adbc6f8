"""Requests for the bytes of one file: signed, bound to one content, and the answer checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from worker.sources import Changed, Denied, NotThere, RemoteFile, Signed, SourceError, Unreachable, origin_of
from worker.transfer.buffers import BufferPool
from worker.transfer.client import Answer, Client, RefusedElsewhere
from worker.transfer.connection import Head
from worker.transfer.limits import Limits
from worker.transfer.ranged import RangesBroken, Span, span_of, validator_of
from worker.transfer.settings import DownloadSettings

REFUSALS: Final = 3
"""So often a place that was just signed may refuse, before it is believed."""
Sign = Callable[[], Awaitable[Signed]]
"""Where a request goes, now: `Source.requests` with its arguments. Asked for each request, as signatures expire."""


@dataclass(frozen=True, slots=True)
class Means:
    """What all transfers of a node share."""

    client: Client
    pool: Callable[[int | None], BufferPool]
    """Makes the buffers of one transfer, of a file of that size: what it may have received and not written."""
    limits: Limits
    settings: DownloadSettings
    system_bytes: int | None
    """The largest buffer that the system gives to a connection; None where it does not tell."""
    dice: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Got:
    """An answer and which bytes it has. `foreign`: not of the content that an earlier process began."""

    answer: Answer
    span: Span
    foreign: bool


class Asking:
    """`size` and `validator` are what is known of the content so far."""

    def __init__(self, client: Client, file: RemoteFile, sign: Sign) -> None:
        self.size = file.size_bytes
        self.validator: str | None = None
        self._client = client
        self._file = file
        self._sign = sign
        self._place: Signed | None = None
        """Where the last redirect led: the source itself is not asked for each piece."""
        self._refusals = 0
        """In a row, of places that the source had just signed."""
        self._seen = False
        """The validator is of an answer to this process."""
        self._loose = False
        """The digest alone decides: servers of one content may give it several ETags."""

    @property
    def pinned(self) -> bool:
        """The listing says which content is meant: another one must be listed anew."""
        return any(each is not None for each in (self._file.digest, self._file.etag, self._file.size_bytes))

    def anew(self) -> None:
        """Nothing was received yet."""
        self.size = self._file.size_bytes
        self.validator, self._seen, self._loose = None, False, False

    @asynccontextmanager
    async def get(self, asked: tuple[int, int] | None) -> AsyncGenerator[Got]:
        """One answer. Its body is taken inside. Raises a `SourceError`."""
        async with AsyncExitStack() as stack:
            answer = await self._exchange(stack, asked)
            got = self._checked(answer, asked)
            self._remember(answer)
            yield got

    async def _exchange(self, stack: AsyncExitStack, asked: tuple[int, int] | None) -> Answer:
        headers: dict[str, str] = {}
        if asked is not None:
            headers["Range"] = f"bytes={asked[0]}-{asked[1] - 1}"
            if self.validator is not None and not self._loose:
                headers["If-Range"] = self.validator
        if (kept := self._place) is not None:
            try:
                return await stack.enter_async_context(self._client.exchange("GET", kept, headers))
            except (Denied, NotThere):
                if self._place is kept:
                    self._place = None  # its time is over: the source is asked where to go now
        signed = await self._sign()
        try:
            answer = await stack.enter_async_context(self._client.exchange("GET", signed, headers))
        except (Denied, NotThere) as error:
            raise self._refusal(error, signed) from error
        self._refusals = 0
        return answer

    def _refusal(self, error: Denied | NotThere, signed: Signed) -> SourceError:
        """What holds for a while may have ended on the way, or not have begun by their clock: another one is asked
        for before a refusal counts."""
        for_a_while = isinstance(error, RefusedElsewhere) or signed.url != self._file.url
        self._refusals += 1
        if not for_a_while or self._refusals > REFUSALS:
            return error
        return Unreachable(f"{self._file.path}: where its source leads to refuses it: {error.message}")

    def _remember(self, answer: Answer) -> None:
        # Credentials stay behind where a redirect leaves their origin; on the same origin nothing is saved.
        if answer.redirected and origin_of(answer.url) != origin_of(self._file.url):
            self._place = Signed(answer.url)

    def _checked(self, answer: Answer, asked: tuple[int, int] | None) -> Got:
        span = span_of(answer.head, self._file.path, asked)
        foreign = self._foreign(answer.head)
        if foreign and self._file.digest is not None:
            self._loose, foreign = True, False
            if asked is not None and not span.partial:
                raise Unreachable(f"{self._file.path}: has another ETag now")
        if foreign and self._seen:
            raise Changed(f"{self._file.path}: was changed while it was read")
        if asked is not None and not span.partial and self._seen:
            raise RangesBroken(f"{self._file.path}: the whole file came where a range was asked for")
        self._sized(span)
        if not self._seen:
            self.validator, self._seen = validator_of(answer.head) or (None if foreign else self.validator), True
        return Got(answer, span, foreign)

    def _foreign(self, head: Head) -> bool:
        found, etag = validator_of(head), self._file.etag
        if not self._seen and etag is not None and found is not None and etag.startswith('"') and found != etag:
            raise Changed(f"{self._file.path}: is no longer what was listed (ETag {found[:60]})")
        return self.validator is not None and found is not None and found != self.validator

    def _sized(self, span: Span) -> None:
        if self.size is not None and span.size is not None and span.size != self.size:
            raise Changed(f"{self._file.path}: has {span.size} bytes, not {self.size}")
        self.size = span.size if self.size is None else self.size
