"""One file's way over HTTP: as many connections as it is worth, tries, and what to do when it is not what it should be.

What arrives is believed step by step. A head must fit what was asked; a server that ignores or mixes up ranges is
asked for the whole file, over one connection; the digest decides in the end. A wrong digest has everything sent again
once, as nothing tells which bytes are bad, and this time without ranges, which are what servers get wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from worker.devices import aside
from worker.sources import Changed, Corrupt, RemoteFile, SourceError, Throttled, Unreachable
from worker.transfer.asking import Asking, Got, Means, Sign
from worker.transfer.backoff import LONGEST_S, Backoff
from worker.transfer.disk import Disk, discard, remains
from worker.transfer.intervals import Intervals
from worker.transfer.journal import Identity
from worker.transfer.part import Digests, Part
from worker.transfer.pieces import Pieces
from worker.transfer.ranged import RangesBroken
from worker.transfer.stream import Stream
from worker.transfer.together import together
from worker.transfer.underway import piece_bytes, system_bytes

PROGRESS_BYTES: Final = 256 << 10
"""So much between two failures and the tries begin anew."""


class Transfer:
    """Made for one file, run once."""

    def __init__(
        self, means: Means, file: RemoteFile, sign: Sign, part: Part, on_bytes: Callable[[int], None], source: str
    ) -> None:
        self._means = means
        self._file = file
        self._part = part
        self._on_bytes = on_bytes
        self._asking = Asking(means.client, file, sign)
        self._pool = means.pool(file.size_bytes)
        self._share = means.limits.share(source, file.url)
        self._hub = source == "hf"
        self._disk: Disk | None = None
        self._done = Intervals()
        """What was given to the disk."""
        self._whole = False
        """The whole file is asked for, without a range, over one connection."""

    async def run(self) -> Digests:
        """See `Fetcher.fetch`."""
        try:
            await self._resume()
            digests = await self._rounds()
        except SourceError:
            await self._end(keep=True)
            raise
        except BaseException:
            await self._end(keep=False)
            raise
        finally:
            self._pool.close()
        return digests

    async def _rounds(self) -> Digests:
        digests = await self._tried()
        if check(self._file, digests) is None:
            return digests
        await self._forget()
        self._whole = True
        digests = await self._tried()
        if (error := check(self._file, digests)) is not None:
            await aside(lambda: discard(self._part), "transfer-discard")
            raise error
        return digests

    # -- tries ------------------------------------------------------------------------------------------------------
    async def _tried(self) -> Digests:
        """All bytes, in as many tries as are needed and allowed."""
        backoff = self._backoff()
        while True:
            before = self._done.size
            try:
                await self._pass(backoff)
                return await self._opened().finish()
            except RangesBroken as error:
                if self._whole:
                    raise Corrupt(error.message) from error
                self._whole = True
                await self._forget()
            except (Unreachable, Throttled, Changed) as error:
                if isinstance(error, Changed):
                    if self._asking.pinned:
                        raise
                    await self._forget()
                await self._wait(backoff, error, self._done.size - before)

    def _backoff(self) -> Backoff:
        settings = self._means.settings
        if self._hub:
            return Backoff(settings.hf_retry_interval_s, settings.hf_max_retries)
        return Backoff(settings.retry_interval_s, settings.download_retry)

    async def _wait(self, backoff: Backoff, error: SourceError, gained: int) -> None:
        """Wait before the next try. Raises the error when there were enough."""
        if gained >= PROGRESS_BYTES:
            backoff.progress()
        asked_s = error.retry_after_s
        # a cool-down is waited for by the client, together with the fleet
        wait_s = backoff.failed(self._means.dice(), None if isinstance(error, Throttled) else asked_s)
        if wait_s is None or (asked_s or 0.0) > LONGEST_S:
            raise error
        await asyncio.sleep(wait_s)

    async def _pass(self, backoff: Backoff) -> None:
        """Ask for what is missing, until nothing is or the first failure of the connection that leads."""
        size = self._asking.size
        pieces = self._pieces(size) if size is not None else None
        if self._whole or pieces is None:
            await self._forget()
        elif not pieces:
            await self._open()
            return
        asked = None if self._whole or pieces is None or not self._ranged else pieces.take()
        async with self._asking.get(asked) as got:
            await self._answered(got, asked, pieces, backoff)

    async def _answered(self, got: Got, asked: tuple[int, int] | None, pieces: Pieces | None, backoff: Backoff) -> None:
        if got.foreign:  # of other content than what an earlier process left
            await self._forget()
        if not got.span.partial:
            if self._done.size or got.foreign:
                await self._forget()
            await self._open()
            await self._all_of(got)
        elif asked is None or pieces is None or got.foreign:
            raise Unreachable(f"{self._file.path}: what was there is of other content")
        else:
            await self._open()
            if self._large:
                way_s = got.answer.connection.round_trip_s
                pieces.piece_bytes = piece_bytes(self._asking.size or 0, way_s, self._means.settings.piece_bytes)
            helpers = [self._pull(pieces, self._backoff(), leads=False) for _ in range(self._helpers)]
            await together(self._lead(got, asked, pieces, backoff), *helpers)

    @property
    def _large(self) -> bool:
        return (self._asking.size or 0) >= self._means.settings.multipart_threshold_bytes

    @property
    def _ranged(self) -> bool:
        return self._large or self._done.size > 0

    @property
    def _helpers(self) -> int:
        return self._means.settings.multipart_concurrency - 1 if self._large else 0

    def _pieces(self, size: int) -> Pieces:
        most = self._means.settings.piece_bytes
        return Pieces(size, self._done, piece_bytes(size, 0.0, most) if self._large else max(size, 1))

    # -- bytes ------------------------------------------------------------------------------------------------------
    async def _all_of(self, got: Got) -> None:
        """The whole file in one answer."""
        size = self._asking.size
        at = await self._stream(got, 0, size)
        if size is None:
            self._asking.size = at
        elif at < size:
            raise Unreachable(f"{self._file.path}: {at} of {size} bytes came")

    async def _lead(self, got: Got, asked: tuple[int, int], pieces: Pieces, backoff: Backoff) -> None:
        await self._piece(got, asked, pieces)
        await self._pull(pieces, backoff, leads=True)

    async def _pull(self, pieces: Pieces, backoff: Backoff, *, leads: bool) -> None:
        """Fetch pieces until none is left. One that helps, and cannot, leaves the work to the others."""
        while (asked := pieces.take()) is not None:
            before = self._done.size
            try:
                async with self._asking.get(asked) as got:
                    if not got.span.partial or got.foreign:
                        raise RangesBroken(f"{self._file.path}: the whole file came where a range was asked for")
                    await self._piece(got, asked, pieces, owned=True)
            except (Unreachable, Throttled) as error:
                self._return(asked, pieces)
                try:
                    await self._wait(backoff, error, self._done.size - before)
                except SourceError:
                    if leads:
                        raise
                    return

    def _return(self, asked: tuple[int, int], pieces: Pieces) -> None:
        """What of a piece did not come is asked for again."""
        for start, end in self._done.missing(asked[1]):
            pieces.give_back(max(start, asked[0]), end)

    async def _piece(self, got: Got, asked: tuple[int, int], pieces: Pieces, *, owned: bool = False) -> None:
        end = got.span.end or asked[1]
        try:
            at = await self._stream(got, asked[0], end)
        except (Unreachable, Throttled):
            if owned:
                raise
            self._return(asked, pieces)
            return
        if at < asked[1]:
            pieces.give_back(at, asked[1])

    async def _stream(self, got: Got, start: int, end: int | None) -> int:
        """Returns the byte after the last that came."""
        connection = got.answer.connection
        most = self._means.system_bytes
        limit = system_bytes(self._asking.size, self._helpers + 1, connection.round_trip_s, most) if most else None
        if limit is not None:
            connection.limit_buffer(limit)
        stream = Stream(
            connection,
            self._opened(),
            self._pool,
            self._share,
            self._came,
            start=start,
            end=end,
            stall_timeout_s=self._means.settings.stall_timeout_s,
        )
        await stream.run()
        return stream.at

    def _came(self, start: int, count: int) -> None:
        self._done.add(start, start + count)
        self._on_bytes(count)

    # -- disk -------------------------------------------------------------------------------------------------------
    def _opened(self) -> Disk:
        if self._disk is None:
            raise AssertionError("a pass opens the disk before anything is written to it")
        return self._disk

    async def _open(self) -> None:
        if self._disk is None:
            algorithm = self._file.digest.algorithm if self._file.digest else None
            self._disk = await Disk.open(self._part, self._identity(), Intervals(self._done), algorithm)

    def _identity(self) -> Identity:
        digest = str(self._file.digest) if self._file.digest else None
        return Identity(self._asking.size, digest, self._asking.validator)

    async def _resume(self) -> None:
        """Go on with what an earlier process left, if it can be told to be of the same content."""
        size, etag = self._file.size_bytes, self._file.etag
        found = await remains(self._part)
        if found is None or size is None or not found.identity.same_content(self._identity()):
            return
        if self._file.digest is None and (
            found.identity.validator is None or etag not in (None, found.identity.validator)
        ):
            return
        self._asking.validator = found.identity.validator
        self._done = found.done
        if found.done.size:
            self._on_bytes(found.done.size)

    async def _end(self, *, keep: bool) -> None:
        disk, self._disk = self._disk, None
        if disk is not None:
            await disk.abandon(keep=keep)

    async def _forget(self) -> None:
        """Nothing of what is there counts."""
        await self._end(keep=False)
        if self._done.size:
            self._on_bytes(-self._done.size)
        self._done = Intervals()
        self._asking.anew()


def check(file: RemoteFile, digests: Digests) -> Corrupt | None:
    """What is wrong with a file that came."""
    if file.size_bytes is not None and digests.size_bytes != file.size_bytes:
        return Corrupt(f"{file.path}: {digests.size_bytes} bytes came, not {file.size_bytes}")
    wanted = file.digest
    if wanted is None or digests.of(wanted.algorithm) == wanted:
        return None
    return Corrupt(f"{file.path}: what came has {digests.of(wanted.algorithm)}, it should be {wanted}")
