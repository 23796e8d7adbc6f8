"""One try to have a model: ask its source, fetch what is missing, make it a copy."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, cast

from schemas.model import CopyProgress, ModelRecord, Wanted
from schemas.source import parse_source
from worker.copyjob import Watch
from worker.flags import FlagRefused
from worker.remoteflags import check_remote
from worker.sources import Corrupt, Digest, Listing, RemoteFile, Secrets, Signed, Source, Unsupported, Want
from worker.store.budget import Evict
from worker.store.counting import Came, Counted, left_bytes
from worker.store.errors import BadModelFile
from worker.store.manifest import Copy
from worker.store.progress import Meter
from worker.store.sharing import Hears, SharedFetches, Start
from worker.store.staging import Installing, Staging
from worker.store.store import Store
from worker.transfer.part import Digests, Part

log = logging.getLogger(__name__)
Listener = Callable[[CopyProgress], None]
Sign = Callable[[], Coroutine[Any, Any, Signed]]


class Fetch(Protocol):
    """Brings the bytes of one file: `worker.transfer.fetcher.Fetcher`."""

    async def fetch(
        self, file: RemoteFile, sign: Sign, part: Part, on_bytes: Callable[[int], None], *, source: str = ""
    ) -> Digests:
        """Have the whole file in the part. Cancelled, it stops at once."""
        ...


def anything(_want: Wanted, _listing: Listing) -> None:
    """Every model may be had."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Whom the work is given to."""

    fetcher: Fetch
    secrets: Secrets
    check_fits: Callable[[Wanted, Listing], None] = anything
    """Raises `NeverFits` for a model that no device of this node could ever hold."""


def plain(want: Wanted) -> Wanted:
    """As it is wanted, no variant chosen."""
    return want


def _check(want: Wanted) -> None:
    try:
        check_remote(want.profile.flags)
    except FlagRefused as refused:
        raise Unsupported(refused.message) from refused


def fingerprint(want: Wanted) -> str:
    """The same for wants of the same files, whatever they are for and whoever wants them."""
    fields = set(Wanted.model_fields) - {"profile", "retain"}
    told = want.model_dump(mode="json", include=fields)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def listing_print(listing: Listing) -> str:
    """The same for listings of the same content."""
    files = sorted((file.path, file.size_bytes, str(file.digest or ""), file.role) for file in listing.files)
    told = json.dumps([listing.ref.text, listing.revision, listing.main, files])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


class Copying:
    """`step` is told of each phase; `discarded` says at the end whether what has come is to go."""

    def __init__(
        self,
        store: Store,
        parts: Parts,
        shared: SharedFetches,
        want: Wanted,
        meter: Meter,
        *,
        find: Callable[[str], Source],
        step: Callable[[str], None],
        protected: Callable[[], Collection[str]],
        evict: Evict,
        watch: Watch,
        discarded: Callable[[], bool],
    ) -> None:
        self._store = store
        self._parts = parts
        self._shared = shared
        self._want = want
        self._meter = meter
        self._find = find
        self._step = step
        self._protected = protected
        self._evict = evict
        self._watch = watch
        self.installed = False
        """Files have come, or other ones are used now."""
        self._discarded = discarded
        _check(want)
        ref = parse_source(want.source)
        self._source = find(ref.scheme)
        self._asked = Want(
            ref=ref,
            revision=want.revision,
            files=want.files,
            checksums=MappingProxyType(want.checksums),
            token_ref=want.token_ref,
            parameters=MappingProxyType(want.parameters),
        )

    async def run(self, *, again: bool) -> Copy:
        """The copy. Raises a `SourceError`."""
        copy = self._store.copies().get(self._want.model)
        usable = copy is not None and not copy.broken and not again
        if copy is not None and usable and self._want.policy == "reuse_if_exists" and self._same_want(copy):
            return await self._amended(copy.manifest.listing)
        self._step("resolving")
        listing = await self._source.resolve(self._asked.ref, want=self._asked, secrets=self._parts.secrets)
        if copy is not None and usable and copy.manifest.listing == listing_print(listing):
            return await self._amended(copy.manifest.listing)
        self._parts.check_fits(self._want, listing)
        copy = await self._install(listing, again=again)
        self.installed = True
        return copy

    def _same_want(self, copy: Copy) -> bool:
        return copy.manifest.want == fingerprint(self._want)

    async def _amended(self, listing: str) -> Copy:
        return await self._store.amend(self._want.model, self._told(listing))

    def _told(self, listing: str) -> Installing:
        want = self._want
        return Installing(
            source=want.source,
            want=fingerprint(want),
            listing=listing,
            profile=want.profile,
            retain=want.retain,
            skip_parsing=want.skip_parsing,
            generation=want.generation if isinstance(want, ModelRecord) else None,
        )

    async def _install(self, listing: Listing, *, again: bool) -> Copy:
        staging = await self._store.begin(self._want.model, listing, fresh=again)
        spoilt = False
        try:
            await self._fetch_all(staging, fresh=again)
            self._step("checking")
            return await staging.commit(self._told(listing_print(listing)))
        except (BadModelFile, Corrupt):
            spoilt = True
            raise
        finally:
            await staging.close(discard=spoilt or self._discarded())

    async def _fetch_all(self, staging: Staging, *, fresh: bool) -> None:
        missing, files = staging.missing(), staging.listing.files
        sizes = {file.path: file.size_bytes for file in files}
        self._meter.bytes_total = staging.listing.size_bytes
        self._meter.files_total, self._meter.files_done = len(files), len(files) - len(missing)
        self._meter.bytes_done = sum(sizes[file.path] or 0 for file in files if file not in missing)
        needed = max(sum(file.size_bytes or 0 for file in missing) - await staging.written_bytes(), 0)
        reservation = await self._store.reserve(needed, protected=self._protected(), evict=self._evict)
        try:
            self._step("fetching")
            async with asyncio.TaskGroup() as group:
                for file in missing:
                    group.create_task(self._fetch(staging, file, reservation.spent, fresh=fresh))
        except BaseExceptionGroup as failed:
            raise _first(failed) from failed
        finally:
            reservation.release()

    async def _fetch(self, staging: Staging, file: RemoteFile, spent: Callable[[int], None], *, fresh: bool) -> None:
        if not fresh and await staging.adopt(file, await self._store.candidates(staging.listing, file)):
            self._meter.there(file.size_bytes or 0)
        else:
            start = self._start(staging, file, await staging.part(file), fresh=fresh)
            digests = await self._shared.fetch(staging.key(file), start, Counted(self._meter, spent))
            await staging.placed(file, digests, self._expected(file))
        self._meter.files_done += 1

    def _start(self, staging: Staging, file: RemoteFile, part: Part, *, fresh: bool) -> Start:
        """Brings the file and makes it a blob, for all who wait: whoever begins after that finds the blob."""

        async def start(hears: Hears) -> Digests:
            known = None if fresh else await staging.arrived(file)
            if known is not None:
                hears.there(known.size_bytes)
                return known
            came = Came(hears, partial(self._watch.came, self._want.model), await left_bytes(file, part))
            scheme, fields = self._asked.ref.scheme, {"event": "file_download", "model": self._want.model}
            log.info("downloading file", extra={**fields, "file": file.path, "bytes": file.size_bytes})
            fetching = self._parts.fetcher.fetch(file, lambda: self._signed(file), part, came, source=scheme)
            return await self._checked(file, fetching, staging)

        return start

    async def _checked(self, file: RemoteFile, coming: Coroutine[Any, Any, Digests], staging: Staging) -> Digests:
        expected = self._expected(file)
        told = expected or ((file.digest,) if file.digest else ())
        algorithm = told[0].algorithm if told else "sha256"
        fields = {"event": "verification", "model": self._want.model, "file": file.path, "algorithm": algorithm}
        try:
            digests = await coming
            await staging.placed(file, digests, expected)
        except Corrupt:
            self._watch.checked(good=False, algorithm=algorithm)
            log.error("verification failed", extra={**fields, "good": False})
            raise
        self._watch.checked(good=True, algorithm=algorithm)
        log.debug("verification passed", extra={**fields, "good": True})
        return digests

    def _expected(self, file: RemoteFile) -> tuple[Digest, ...]:
        told = self._asked.checksum(file.path)
        return (told,) if told else ()

    async def _signed(self, file: RemoteFile) -> Signed:
        return await self._source.requests(file, want=self._asked, secrets=self._parts.secrets)


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended the others."""
    first = failed.exceptions[0]
    return _first(cast(BaseExceptionGroup[BaseException], first)) if isinstance(first, BaseExceptionGroup) else first
