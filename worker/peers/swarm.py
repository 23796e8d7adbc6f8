"""Taking one file from whoever has some of it, chunk by chunk, until it is whole or the source must be asked."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Literal

from schemas.peer import Offer
from worker.peers import chunks
from worker.peers.client import PeerBusy, PeerFailed, PeerForgot, PeerLacks
from worker.peers.crowd import Crowd, Tally
from worker.peers.holders import BUSY_S, WRONG_S, Holder, Holders, Shunned
from worker.peers.lease import Lease
from worker.peers.partfile import PartFile
from worker.sources import RemoteFile

log = logging.getLogger(__name__)

PULLS: Final = 4
"""Chunks of one file that are on their way at once."""
ASK_LEAST_S: Final = 1.0
ASK_MOST_S: Final = 8.0
"""How often all are asked, while something comes or somebody who has more is known: ever less often."""
ASK_LOST_S: Final = 0.5
"""How often while nobody is known."""
POLL_S: Final = 0.25
"""How often the one who has most is looked at again, while there is nothing to take."""
LEASE_LOOK_S: Final = 1.0
TICK_S: Final = 0.02
NOBODY_S: Final = 10.0
"""With nobody who has what is missing for so long, and no source to ask, it is given up."""
End = Literal["whole", "lead", "alone"]


class Swarm:
    """One file's. `given`: who gave each chunk, and its SHA-256; `only`: the one node that may be asked, if not
    all; `trouble`: why the last node that failed did. Without a lease there is no source to ask."""

    def __init__(self, crowd: Crowd, key: str, file: RemoteFile, tally: Tally, lease: Lease | None) -> None:
        size = file.size_bytes or 0
        self.given: dict[int, tuple[str, str]] = {}
        self.only: str | None = None
        self.trouble: str | None = None
        self._crowd = crowd
        # a node that was named is asked, whatever it did before
        self._shunned = crowd.shunned if lease is not None else Shunned(crowd.clock)
        self.holders = Holders(size, self._shunned, crowd.clock, crowd.dice)
        self._key = key
        self._name = file.path
        self._all = chunks.all_of(size)
        self._tally = tally
        self._lease = lease
        self._stirred = asyncio.Event()
        self._pulls: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._sums: dict[int, str] = {}
        self._mark = ""
        self._ask_s = ASK_LEAST_S / 2
        self._ask_at = 0.0
        self._lease_at = 0.0
        self._poll_at = 0.0
        self._polling: asyncio.Task[None] | None = None
        self._moved_at = 0.0

    async def run(self, file: PartFile) -> End:
        """Take what there is. `whole`: all of it is there · `lead`: this node is to ask the source, and has the lease ·
        `alone`: it is to ask it without. Raises `NoSpace`, `DiskFailed`."""
        self._moved_at = self._crowd.clock()
        self._ask_at = self._lease_at = self._poll_at = 0.0
        self._mark = self._crowd.questions.join(self._heard)
        self._sums = self._crowd.holdings.sums(self._key, file.inode)
        try:
            return await self._rounds(file)
        finally:
            self._crowd.questions.leave(self._mark)
            pulls = (*self._pulls, *((self._polling,) if self._polling else ()))
            for pull in pulls:
                pull.cancel()
            await asyncio.gather(*pulls, return_exceptions=True)
            self._pulls.clear()

    async def look(self, have: int) -> None:
        """Ask, and wait as long as answers usually take."""
        self._mark = self._crowd.questions.join(self._heard)
        try:
            self._crowd.questions.ask(self._mark, self._key, have)
            await asyncio.sleep(self._crowd.settings.answer_wait_s)
        finally:
            self._crowd.questions.leave(self._mark)

    # -- rounds ------------------------------------------------------------------------------------------------------
    async def _rounds(self, file: PartFile) -> End:
        while missing := self._all & ~file.chunks:
            self._settle()
            self._fill(file, missing)
            if not self._ask(file):
                return "alone"
            if not self.holders.available(missing):
                self._poll()
            if not self._pulls and not self.holders.available(missing):
                end = await self._elect(file)
                if end is not None:
                    return end
            await self._wait(missing)
        return "whole"

    def _settle(self) -> None:
        """Pulls that have ended; one that failed for a reason of this node ends all."""
        for pull in [pull for pull in self._pulls if pull.done()]:
            self._pulls.discard(pull)
            pull.result()

    def _fill(self, file: PartFile, missing: int) -> None:
        while len(self._pulls) < PULLS:
            picked = self.holders.pick(missing & ~self._under_way)
            if picked is None:
                return
            number, holder = picked
            holder.asked += 1
            self._under_way |= 1 << number
            pull = asyncio.get_running_loop().create_task(self._pull(file, number, holder), name=f"peer chunk {number}")
            self._pulls.add(pull)

    def _ask(self, file: PartFile) -> bool:
        """Ask who has more, when it is time to. False where that cannot be asked, and nobody is known."""
        now, crowd = self._crowd.clock(), self._crowd
        missing = self._all & ~file.chunks
        if now < self._ask_at:
            return True
        known = self.holders.available(missing) or self.holders.growing() is not None
        self._ask_s = min(self._ask_s * 2, ASK_MOST_S) if known else ASK_LEAST_S / 2
        self._ask_at = now + max(self._ask_s, ASK_LOST_S) * (0.5 + crowd.dice())
        asked = crowd.questions.ask(self._mark, self._key, file.chunks)
        return asked or bool(self._pulls) or bool(self.holders.available(missing))

    def _poll(self) -> None:
        """Look again at the one who has most, when it is time to."""
        now, holder = self._crowd.clock(), self.holders.growing()
        if holder is None or now < self._poll_at or (self._polling is not None and not self._polling.done()):
            return
        self._poll_at = now + POLL_S * (0.5 + self._crowd.dice())
        self._polling = asyncio.get_running_loop().create_task(self._grown(holder), name="peer poll")

    async def _grown(self, holder: Holder) -> None:
        node = holder.offer.node
        try:
            self.holders.grown(node, await self._crowd.client.have(holder.offer, self._key))
        except PeerBusy:
            return
        except PeerFailed as error:
            self.holders.forget(node)
            self._note("peer_failed", node, reason=str(error))
        self._stirred.set()

    async def _elect(self, file: PartFile) -> End | None:
        """Nobody has what is missing: ask the source, unless somebody else does."""
        now, crowd = self._crowd.clock(), self._crowd
        if now - self._moved_at > (crowd.settings.patience_s if self._lease else NOBODY_S):
            return "alone"
        if now < self._lease_at:
            return None
        self._lease_at = now + LEASE_LOOK_S * (0.5 + crowd.dice())
        if self._lease is None:
            return None
        got = await self._lease.take()
        if not got:
            return "alone" if got is None else None
        # whoever had it before may have brought all of it by now
        crowd.questions.ask(self._mark, self._key, file.chunks)
        await asyncio.sleep(crowd.settings.answer_wait_s)
        if not self.holders.available(self._all & ~file.chunks):
            return "lead"
        await self._lease.give_up()
        return None

    async def _wait(self, missing: int) -> None:
        now, until = self._crowd.clock(), self._ask_at
        wanted = missing & ~self._under_way
        if not self.holders.available(missing):
            until = min(until, max(self._poll_at, now + TICK_S) if self.holders.growing() else until)
            until = min(until, max(self._lease_at, now + TICK_S) if not self._pulls else until)
        elif len(self._pulls) < PULLS and wanted:
            until = min(until, max(self.holders.free_at(wanted), now + TICK_S))
        timer = asyncio.get_running_loop().call_later(max(until - now, 0.001), self._stirred.set)
        try:
            await self._stirred.wait()
        finally:
            timer.cancel()
        self._stirred.clear()

    def _heard(self, offer: Offer) -> None:
        if self.only in (None, offer.node) and self.holders.offered(offer):
            self._stirred.set()

    # -- one chunk ---------------------------------------------------------------------------------------------------
    async def _pull(self, file: PartFile, number: int, holder: Holder) -> None:
        try:
            async with self._crowd.downloads:
                await self._take(file, number, holder)
        finally:
            holder.asked -= 1
            self._under_way &= ~(1 << number)
            self._stirred.set()

    async def _take(self, file: PartFile, number: int, holder: Holder) -> None:
        crowd, node = self._crowd, holder.offer.node
        try:
            came = await crowd.client.chunk(holder.offer, self._key, number)
        except PeerBusy:
            holder.busy_until = crowd.clock() + BUSY_S * (0.5 + crowd.dice())
        except PeerLacks:
            self.holders.lacks(node, number)
        except PeerForgot:
            self.holders.forget(node)
            self._ask_at = 0.0
        except PeerFailed as error:
            self._shunned.failed(node)
            self.holders.forget(node)
            self._note("peer_failed", node, reason=str(error))
        else:
            crowd.watch.received(len(came.data))
            if await file.write(number, came.data, came.sha256):
                self.given[number] = (node, came.sha256)
                self._sums[number] = came.sha256
                self._shunned.worked(node)
                self._moved_at = crowd.clock()
                self._tally.there(file.bytes_done)
            else:
                self._shunned.shun(node, WRONG_S)
                crowd.watch.rejected("chunk_checksum")
                crowd.tell("peer_wrong", peer=node, file=self._name, chunks=1)
                self._note("peer_wrong", node, chunk=number)
            self.holders.grown(node, came.have or 0)
            crowd.client.done_with(came)

    def _note(self, event: str, node: str, **facts: object) -> None:
        self.trouble = f"node {node}: {facts['reason']}" if "reason" in facts else self.trouble
        log.warning(event, extra={"event": event, "peer": node, "file": self._name, **facts})
