"""The bytes of a file from other nodes where they have them, else from its source: by one node at a time.

    take from whoever has some of it → whole → checked by the download's own checks
                │ nobody has what is missing
                └→ the lease: who gets it asks the source; the others take what that brings, as it grows

What came from others is compared chunk by chunk, and the whole by its digest in the end. When that is wrong, chunks
that differ from those of a node with all of it are taken anew; when it is still wrong, everything comes from the
source. Then it is known who lied. A file of `peer://` has no source: it comes from other nodes or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from schemas.peer import KEY, Offer
from worker.copying import Fetch, Sign
from worker.devices import aside
from worker.peers import chunks
from worker.peers.client import PeerFailed
from worker.peers.crowd import Crowd, Source, Tally
from worker.peers.lease import Lease
from worker.peers.partfile import PartFile, identity_of, sums_of
from worker.peers.swarm import Swarm
from worker.peers.uploads import SUMS_AT_ONCE
from worker.sources import Corrupt, RemoteFile, Signed, SourceError, Unreachable, Unsupported
from worker.sources.peer import SCHEME
from worker.transfer.disk import discard
from worker.transfer.journal import Identity
from worker.transfer.part import Digests, Part

log = logging.getLogger(__name__)

MENDS: Final = 3
LIED_S: Final = 3600.0
QUIET_LEASES: Final = 2
"""A source that sent nothing for so many times of the lease: it is let go, somebody else may do better."""
CONFIRM_TRIES: Final = 10


class PeerFetcher:
    """`inner` asks sources, resumes and checks."""

    def __init__(self, inner: Fetch, crowd: Crowd) -> None:
        self._inner = inner
        self._crowd = crowd

    async def fetch(
        self, file: RemoteFile, sign: Sign, part: Part, on_bytes: Callable[[int], None], *, source: str = ""
    ) -> Digests:
        """As `worker.transfer.fetcher.Fetcher.fetch`. The part's folder is named by the key of the file."""
        key, identity = part.data.parent.name, identity_of(file)
        if identity is None or not self._shared(key, file):
            digests = await self._inner.fetch(file, sign, part, on_bytes, source=source)
        else:
            digests = await _Shared(self._inner, self._crowd, key, identity, file, sign, part, on_bytes, source).run()
        if not key.startswith("sha256-"):
            self._crowd.holdings.learn(key, digests.sha256)
        return digests

    def _shared(self, key: str, file: RemoteFile) -> bool:
        """Whether other nodes are asked. Raises `Unsupported` for a file that only they have, and may not be."""
        settings, scheme = self._crowd.settings, urlsplit(file.url).scheme
        if scheme == SCHEME and not settings.enabled:
            raise Unsupported(f"{file.path}: this node shares no files (peers.enabled)")
        known = settings.enabled and KEY.fullmatch(key) is not None and scheme != "file"
        return known and (scheme == SCHEME or (file.size_bytes or 0) >= settings.smallest_bytes)


class _Asked(SourceError):
    """The download wants to ask the source, although all bytes were there: they are not what they should be."""


class _Shared:
    """One file, run once."""

    def __init__(
        self,
        inner: Fetch,
        crowd: Crowd,
        key: str,
        identity: Identity,
        file: RemoteFile,
        sign: Sign,
        part: Part,
        on_bytes: Callable[[int], None],
        source: str,
    ) -> None:
        self._inner = inner
        self._crowd = crowd
        self._key = key
        self._identity = identity
        self._file = file
        self._size = file.size_bytes or 0
        self._sign = sign
        self._part = part
        self._source = source
        self._tally = Tally(on_bytes)
        self._lease = Lease(crowd.bus, crowd.node, key, crowd.settings.lease_s)
        self._only_peers = urlsplit(file.url).scheme == SCHEME
        self._swarm = Swarm(crowd, key, file, self._tally, None if self._only_peers else self._lease)
        self._suspects: set[tuple[int, str, str]] = set()
        """Of what was wrong in all: chunks, who gave them, and their sums."""
        self._believed: set[str] = set()
        """Nodes whose sums were tried."""

    async def run(self) -> Digests:
        """See `Fetcher.fetch`."""
        try:
            digests = await self._had()
        finally:
            if self._lease.held:
                self._crowd.run(f"give up fetch of {self._key[:16]}", self._lease.give_up())
        await self._blame()
        return digests

    async def _had(self) -> Digests:
        mends, without = MENDS, 0
        while True:
            end = await self._follow(without)
            if end != "whole" and self._only_peers:
                raise Unreachable(f"{self._file.path}: no node gives what is missing{self._why()}")
            if end != "whole":
                digests = await (self._lead() if end == "lead" else self._from_source(self._tally.source()))
            elif (digests := await self._checked()) is None:
                without = await self._wrong() if mends else 0
                mends -= 1
                digests = None if without else await self._anew()
            if digests is not None:
                return digests

    def _why(self) -> str:
        return f"; {self._swarm.trouble}" if self._swarm.trouble else ""

    async def _follow(self, without: int) -> str:
        file = await PartFile.open(self._part, self._identity, self._crowd.hands, without=without)
        try:
            if without:
                self._crowd.holdings.forget(self._key)
            self._tally.there(file.bytes_done)
            return await self._swarm.run(file)
        finally:
            await file.close()

    # -- the source --------------------------------------------------------------------------------------------------
    async def _lead(self) -> Digests | None:
        """From the source, as long as the lease is ours. None: somebody else has it now."""
        self._crowd.watch.led()
        log.info("fetch_leads", extra={"event": "fetch_leads", "file": self._file.path, "key": self._key})
        told = self._tally.source()
        work = asyncio.get_running_loop().create_task(self._from_source(told), name=f"lead {self._key[:16]}")
        try:
            kept = await self._kept(work, told)
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
        return work.result() if kept else None

    async def _kept(self, work: asyncio.Task[Digests], told: Source) -> bool:
        """Renew the lease until the work has ended. False: it was lost."""
        clock, moved, moved_at, lease_s = self._crowd.clock, 0, self._crowd.clock(), self._lease.lease_s
        while not (await asyncio.wait({work}, timeout=lease_s / 3))[0]:
            if told.moved != moved:
                moved, moved_at = told.moved, clock()
            if clock() - moved_at < QUIET_LEASES * lease_s and not await self._lease.renew():
                log.info("fetch_yields", extra={"event": "fetch_yields", "file": self._file.path, "key": self._key})
                return False
        return True

    async def _from_source(self, told: Source) -> Digests:
        told.on_forgot = lambda: self._crowd.holdings.forget(self._key)
        digests = await self._inner.fetch(self._file, self._sign, self._part, told, source=self._source)
        if told.forgot:
            self._suspect()
        return digests

    async def _anew(self) -> Digests:
        """Everything from the source: others gave what is wrong."""
        log.warning("peers_given_up", extra={"event": "peers_given_up", "file": self._file.path, "key": self._key})
        await aside(lambda: discard(self._part), "peers-discard")
        self._crowd.holdings.forget(self._key)
        self._tally.there(0)
        if self._only_peers:
            self._crowd.watch.rejected("file_checksum", len(self._suspects))
            nodes = ", ".join(sorted({node for _, node, _ in self._suspects})) or "other nodes"
            raise Corrupt(f"{self._file.path}: what {nodes} gave is not the file that was told of")
        return await self._from_source(self._tally.source())

    # -- checks ------------------------------------------------------------------------------------------------------
    async def _checked(self) -> Digests | None:
        """All bytes are there: let the download check them. None: they are wrong."""

        async def refuse() -> Signed:
            raise _Asked(f"{self._file.path}: what other nodes gave is not what it should be")

        try:
            digests = await self._inner.fetch(self._file, refuse, self._part, self._tally.source(), source=self._source)
        except _Asked:
            return None
        return digests if self._file.digest is not None or await self._confirmed(digests.sha256) else None

    async def _confirmed(self, sha256: str) -> bool:
        """Without a digest of the source: whether those that have the file computed the same."""
        for _ in range(CONFIRM_TRIES):
            told = Counter(each.offer.sha256 for each in self._swarm.holders.complete() if each.offer.sha256)
            if told:
                return told[sha256] == max(told.values())
            await self._swarm.look(0)
        return False

    async def _wrong(self) -> int:
        """The chunks to be taken anew, all of one node that has all of it and has others; 0: there is no such node."""
        given = dict(self._swarm.given)
        others = set(range(chunks.count_of(self._size))) - given.keys()
        sums = await sums_of(self._part, self._size, others)
        sums |= {number: sha256 for number, (_, sha256) in given.items()}
        self._suspect()
        self._swarm.only = None
        await self._swarm.look(0)
        for offer in [each.offer for each in self._swarm.holders.complete() if each.offer.node not in self._believed]:
            self._believed.add(offer.node)
            try:
                differing = await self._differing(offer, sums)
            except PeerFailed as error:
                fields = {"event": "peer_failed", "peer": offer.node, "reason": str(error)}
                log.warning("peer_failed", extra=fields)
                continue
            if differing:
                self._swarm.only = offer.node
                self._swarm.holders.keep(offer.node)
                return differing
        return 0

    async def _differing(self, offer: Offer, sums: dict[int, str]) -> int:
        found = 0
        for first in range(0, len(sums), SUMS_AT_ONCE):
            told = await self._crowd.client.sums(offer, self._key, first)
            for number, sha256 in enumerate(told, first):
                if sha256 is not None and sums.get(number) not in (None, sha256):
                    found |= 1 << number
        return found

    # -- who it was --------------------------------------------------------------------------------------------------
    def _suspect(self) -> None:
        """What others gave was wrong, or some of it."""
        self._suspects |= {(number, node, sha256) for number, (node, sha256) in self._swarm.given.items()}
        self._swarm.given.clear()

    async def _blame(self) -> None:
        """The file is right now: name those who gave other bytes."""
        if not self._suspects:
            return
        right = await sums_of(self._part, self._size, {number for number, _, _ in self._suspects})
        liars = Counter(node for number, node, sha256 in self._suspects if right[number] != sha256)
        for node, count in liars.items():
            self._crowd.shunned.shun(node, LIED_S)
            self._crowd.watch.rejected("file_checksum", count)
            fields = {"event": "peer_lied", "peer": node, "file": self._file.path, "key": self._key, "chunks": count}
            log.error("peer_lied", extra=fields)
            self._crowd.tell("peer_lied", peer=node, file=self._file.path, chunks=count)
