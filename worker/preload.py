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
from collections.abc import Iterable, Sequence

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
    """The beginning of a keeper, and the reading of files while it lives."""

    def __init__(self, parts: Parts, survey: Survey, roster: Roster, wishes: Wishes) -> None:
        self._parts = parts
        self._survey = survey
        self._roster = roster
        self._wishes = wishes
        self._again_at = -math.inf

    async def begin(self, found: Sequence[Adoptable]) -> None:
        """Read, adopt, start."""
        entries = list(self._parts.catalogue.entries)
        await self._read(self._keys(entries))
        for each in found:
            await self._adopt(each)
        for entry in sorted(entries, key=_rank):
            if entry.preload is not False or entry.pinned:
                self._start(entry)

    def tick(self, now: float) -> None:
        """Files that could not be used may have been mended."""
        if now >= self._again_at and (keys := self._parts.needs.unusable):
            self._again_at = now + AGAIN_S
            self._parts.tasks.start("read models again", self._parts.needs.refresh(keys))

    def refresh(self) -> None:
        """Another catalogue."""
        entries = list(self._parts.catalogue.entries)
        self._parts.needs.keep_only(each.model for each in entries)
        self._parts.tasks.start("read models", self._read(self._keys(entries)))

    def _keys(self, entries: Iterable[ModelSettings]) -> list[tuple[str, Kind]]:
        return [(entry.model, kind) for entry in entries for kind in self._survey.kinds(entry)]

    async def _read(self, keys: Iterable[tuple[str, Kind]]) -> None:
        """All at once: one that lies on a disk that hangs does not hold up the others."""
        await asyncio.gather(*(self._parts.needs.refresh([key]) for key in keys))

    # -- adopting
    async def _adopt(self, found: Adoptable) -> None:
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
        if self._roster.of(entry.model):
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
