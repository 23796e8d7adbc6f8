"""What is there from the beginning: the models' files are read, engines that run already are taken over, and those that
the settings want are started.

`pinned` models come first, then `preload: true`, then those that do not say, each group in the order of the settings.
One that does not say is started if it fits beside those before it; if not it stays on disk until it is asked for. One
that could never be started is tried all the same, so that its engine's reason is seen, and mended files are found.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence

from worker.adoption import Adoptable
from worker.kept import Origin
from worker.needs import AGAIN_S, Kind
from worker.parts import Parts
from worker.plans import Cannot, Fits, Need
from worker.roster import Roster
from worker.settings import ModelSettings
from worker.survey import Survey
from worker.wishes import Wishes

log = logging.getLogger(__name__)


class Preload:
    """The beginning of a keeper, and the reading of files while it lives. `on_read` is called after each reading."""

    def __init__(
        self, parts: Parts, survey: Survey, roster: Roster, wishes: Wishes, on_read: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._survey = survey
        self._roster = roster
        self._wishes = wishes
        self._on_read = on_read
        self._again_at = -math.inf
        self._late: list[Adoptable] = []

    async def begin(self, found: Sequence[Adoptable]) -> None:
        """Read, adopt, start. An engine of a model that is not known yet may be one of a copy: disks are read later,
        and until then it runs on in the care of its minder."""
        entries = list(self._parts.catalogue.entries)
        await self._read(self._keys(entries))
        known = {entry.model for entry in entries}
        self._late = [each for each in found if each.model not in known]
        self._roster.reserved.update(each.engine_id for each in self._late)
        for each in found:
            if each.model in known:
                await self._adopt(each)
        for entry in sorted(entries, key=_rank):
            if entry.preload is not False or entry.pinned:
                self._start(entry)

    def tick(self, now: float) -> None:
        """Files that could not be used may have been mended."""
        if now >= self._again_at and (keys := self._parts.needs.unusable):
            self._again_at = now + AGAIN_S
            self._parts.tasks.start("read models again", self._read(keys))

    def refresh(self, other: Collection[str]) -> None:
        """Another catalogue, in which these models are new or other than before; the first one has the copies on the
        node's disks."""
        entries = list(self._parts.catalogue.entries)
        self._parts.needs.keep_only(each.model for each in entries)
        late, self._late = self._late, []
        self._parts.tasks.start("read models", self._renew(entries, late, set(other)))

    async def _renew(self, entries: Sequence[ModelSettings], found: Iterable[Adoptable], other: set[str]) -> None:
        for each in found:
            await self._adopt(each)
        await self._read(self._keys(entries))
        for entry in sorted(entries, key=_rank):
            if entry.model in other and entry.preload and self._parts.catalogue.entry(entry.model) == entry:
                self._start(entry)

    def _keys(self, entries: Iterable[ModelSettings]) -> list[tuple[str, Kind]]:
        return [(entry.model, kind) for entry in entries for kind in self._survey.kinds(entry)]

    async def _read(self, keys: Iterable[tuple[str, Kind]]) -> None:
        """All at once: one that lies on a disk that hangs does not hold up the others."""
        await asyncio.gather(*(self._read_one(key) for key in keys))

    async def _read_one(self, key: tuple[str, Kind]) -> None:
        await self._parts.needs.refresh([key])
        self._on_read()

    # -- adopting
    async def _adopt(self, found: Adoptable) -> None:
        self._roster.reserved.discard(found.engine_id)
        entry = self._parts.catalogue.entry(found.model)
        here = {each.device for each in self._parts.devices.current}
        if entry is None or not here.issuperset(found.devices) or found.engine_id in self._roster.kept:
            await asyncio.to_thread(found.end)
            return
        origin: Origin = "pinned" if entry.pinned else "preload" if entry.preload else "adopted"
        kept = self._roster.add(entry.model, found.devices, Need(0), origin, engine_id=found.engine_id)
        kept.launched = True
        if not await kept.engine.adopt(found) and kept.engine.state == "stopped":
            self._roster.drop_unstarted(kept)

    # -- starting
    def _start(self, entry: ModelSettings) -> None:
        if self._roster.closed or self._roster.of(entry.model):
            return
        origin: Origin = "pinned" if entry.pinned else "preload"
        plan = self._survey.plan(entry.model)
        if isinstance(plan, Fits):
            self._roster.add(entry.model, plan.devices, plan.need, origin)
        elif isinstance(plan, Cannot) and (devices := self._survey.fallback_devices(entry)):
            self._roster.add(entry.model, devices, Need(0), origin)
        elif entry.preload or entry.pinned:
            self._wishes.put(entry.model, origin, self._parts.clock(), self._parts.clock())
        else:
            fields = {"event": "model_left_cold", "model": entry.model, "reason": getattr(plan, "reason", "")}
            log.info("a model stays on disk until it is asked for", extra=fields)


def _rank(entry: ModelSettings) -> int:
    return 0 if entry.pinned else 1 if entry.preload else 2
