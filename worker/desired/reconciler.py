"""Has this node's disk be what the records say: looks, decides, lets work begin and end, and looks again.

Level-triggered: whatever is heard only says that it is time to look. A tombstone is acted on in the very call that
brings it. Nothing is taken away because a record is *not* there, unless the bucket itself was asked and is the one that
this node knows.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from bus.kv import Entry, Follower
from bus.waits import backoff_s
from schemas.errors import PunaError
from schemas.model import CopyRecord, ModelRecord
from worker.desired.asides import Asides
from worker.desired.decide import Held, Leave, Made, Me, Remove, Verdict, decide, of_record
from worker.desired.nodes import Nodes
from worker.desired.records import Models, Seen, read_all
from worker.desired.settings import DesiredSettings
from worker.desired.shares import Shares
from worker.desired.shelf import Shelf
from worker.desired.tombstones import Tombstones
from worker.desired.works import Works
from worker.store.manifest import Copy

log = logging.getLogger(__name__)

SETTLE_S: Final = 0.02
"""What is heard together is looked at together."""
AWAY_S: Final = 1.0
"""Between two looks while the records cannot be followed."""


class Disk(Protocol):
    """What this node has."""

    def copies(self) -> Mapping[str, Copy]:
        """By model."""
        ...


@dataclass(frozen=True, slots=True)
class Here:
    """What is known of this node."""

    node: str
    labels: Callable[[], Mapping[str, str]]
    choose: Callable[[ModelRecord], ModelRecord]
    copies: Callable[[], Mapping[str, Copy]]
    states: Callable[[], Mapping[str, CopyRecord]]


class Reconciler:
    """Owner of the view of the records. `tell` publishes events."""

    def __init__(
        self,
        here: Here,
        follower: Callable[[Callable[[Mapping[str, Entry]], None]], Follower],
        models: Models,
        nodes: Nodes,
        shelf: Shelf,
        works: Works,
        *,
        settings: DesiredSettings,
        session: Callable[[], int],
        tell: Callable[..., None],
        monotonic: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._here = here
        self._follower = follower(self.heard)
        self._models = models
        self._nodes = nodes
        self._shelf = shelf
        self._works = works
        self._resync_s = settings.resync_s
        self._session = session
        self._tell = tell
        self._monotonic = monotonic
        self._tombstones = Tombstones(models, nodes, tombstone_s=settings.tombstone_s, monotonic=monotonic, dice=dice)
        self._shares = Shares()
        self._asides = Asides(models, monotonic=monotonic)
        self._seen: dict[str, Seen] = {}
        self._verdicts: Mapping[str, Verdict] = {}
        self._known_session = -1
        self._stirred = asyncio.Event()

    # -- plain: what others tell and ask -----------------------------------------------------------------------------
    def stir(self) -> None:
        """Something may be different: look soon."""
        self._stirred.set()

    def heard(self, entries: Mapping[str, Entry]) -> None:
        """The records are these now."""
        before, self._seen = self._seen, read_all(entries, self._seen)
        for model, seen in self._seen.items():
            if seen is not before.get(model) and seen.record is not None and seen.record.deleting:
                verdict = of_record(model, seen.record, None, self._me(), self._held().get(model))
                self._works.follow_one(model, verdict)
        self.stir()

    def protected(self) -> Collection[str]:
        """Models that no clearing may take: a record wants them here, or their profile pins them."""
        wanted = {model for model, verdict in self._verdicts.items() if _stays(verdict)}
        return wanted | {model for model, copy in self._here.copies().items() if copy.manifest.profile.pinned}

    def revision(self, model: str) -> int:
        """Of the record that was seen last; 0 without one."""
        seen = self._seen.get(model)
        return seen.revision if seen is not None else 0

    # -- life --------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled. The copies must be known."""
        try:
            await self._follower.start()
            failures = 0
            while True:
                self._stirred.clear()
                try:
                    await self._look()
                    failures = 0
                except PunaError as error:
                    failures += 1
                    log.info("desired_unknown", extra={"event": "desired_unknown", "reason": error.message})
                except Exception:  # one record that nobody thought of must not end every node of the fleet
                    failures += 1
                    log.exception("desired_fault", extra={"event": "desired_fault"})
                await self._until_due(backoff_s(failures) if failures else None)
        finally:
            await self._follower.stop()

    def close(self) -> None:
        """Begin nothing any more."""
        self._works.closed = True

    async def stop(self) -> None:
        """End what is being done. Safe to call twice."""
        await self._works.stop()

    async def _until_due(self, again_s: float | None) -> None:
        """`again_s`: after a look that failed."""
        try:
            async with asyncio.timeout(self._rest_s() if again_s is None else again_s):
                await self._stirred.wait()
        except TimeoutError:
            return
        await asyncio.sleep(SETTLE_S)

    def _rest_s(self) -> float:
        due_at = min(self._works.due_at(), self._tombstones.due_at())
        if self._asks_nodes():
            due_at = min(due_at, self._nodes.due_at)
        shortest_s = SETTLE_S if self._follower.whole and not self._works.closed else AWAY_S
        return min(max(due_at - self._monotonic(), shortest_s), self._resync_s)

    # -- looking -----------------------------------------------------------------------------------------------------
    async def _look(self) -> None:
        if not self._follower.whole:  # what was decided last stays, and what failed is tried again
            self._works.follow(self._verdicts)
            return
        if self._asks_nodes():
            await self._nodes.read()
            await self._asides.look(self._seen, self._nodes)
        gone = await self._gone()
        await self._shares.prepare(
            [seen.record for seen in self._seen.values()], self._nodes.view(), self._me(), self._nodes.version
        )
        # from here to what is begun nothing waits: a record that comes meanwhile is not acted against
        records = {model: seen.record for model, seen in self._seen.items()}
        held = self._held()
        self._verdicts = decide(records, self._nodes.view(), self._me(), held, gone=gone, share=self._shares)
        self._works.follow(self._verdicts)
        busy = {model for model in self._seen if model in held or self._works.busy(model)}
        await self._tombstones.settle(self._seen, busy)

    def _asks_nodes(self) -> bool:
        """Whether it matters who else there is."""
        records = (seen.record for seen in self._seen.values())
        return any(each is not None and not each.deleting and each.placement.copies != "all" for each in records)

    def _me(self) -> Me:
        return Me(self._here.node, self._here.labels(), self._here.choose, self._asides.of)

    def _held(self) -> dict[str, Held]:
        """What this node has, and what it is about to have."""
        copies, states = self._here.copies(), self._here.states()
        return {model: self._of(model, copies.get(model)) for model in {*copies, *states, *self._shelf.noted}}

    def _of(self, model: str, copy: Copy | None) -> Held:
        noted = self._shelf.noted.get(model)
        record = noted.record if noted is not None else None
        as_seen = record if noted is not None and noted.revision == self.revision(model) else None
        if copy is None:
            return Held(None, record is not None, as_seen, record is not None and record.retain)
        manifest = copy.manifest
        made = Made(manifest.want, manifest.profile, manifest.retain, manifest.generation)
        recorded = manifest.generation is not None or record is not None
        return Held(None if copy.broken else made, recorded, as_seen, manifest.retain)

    # -- records that are not there ----------------------------------------------------------------------------------
    async def _gone(self) -> set[str]:
        """Models with something here that was made for a record, which was taken away. Puts back what was lost."""
        missing = {model for model, held in self._held().items() if held.recorded} - self._seen.keys()
        session = self._session()
        if not missing and session == self._known_session:
            return set()
        absent = await self._models.missing(missing)
        # asked after the records: if the bucket is the known one now, it was when they were not there
        identity = await self._models.identity()
        noted = [each.revision for each in self._shelf.noted.values()]
        same = identity.created == self._shelf.bucket and identity.sequence >= max(noted, default=0)
        if not same:
            await self._restore()
            await self._remember(identity.created)
            absent = set[str]()
        self._known_session = session
        return absent

    async def _restore(self) -> None:
        """The bucket is another one, or has gone back in time: have it hold the records of what is here."""
        put = [model for model, noted in sorted(self._shelf.noted.items()) if await self._models.put_back(noted)]
        if put:
            log.warning("records_restored", extra={"event": "records_restored", "models": put})
            self._tell("records_restored", models=put[:100])

    async def _remember(self, created: str) -> None:
        try:
            await self._shelf.remember(created)
        except OSError as error:  # asked again in the next session; nothing is taken away meanwhile
            log.error("bucket_not_noted", extra={"event": "bucket_not_noted", "error": str(error)})


def _stays(verdict: Verdict) -> bool:
    return verdict.wanted if isinstance(verdict, Leave) else not isinstance(verdict, Remove)
