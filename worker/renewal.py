"""Engines whose model has got other files or another profile: a new one takes over, the old one ends what it has.

| the new file                        | what is done                                                                   |
|-------------------------------------|--------------------------------------------------------------------------------|
| is being read, cannot be used, or   | nothing: the old engine serves                                                 |
| failed to load a moment ago         |                                                                                |
| fits beside the old engine          | an heir starts; once it is ready the old one takes nothing new, and ends idle  |
| fits only in its place              | the old one goes first, as soon as it is idle, or has had `PATIENCE_S`; should |
|                                     | the new one not load then, the old file comes back (`formers`)                 |
| fits in neither way                 | nothing                                                                        |

One engine of a model at a time, so that a model with several is never without.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from worker.cost import CPU_TIGHT
from worker.kept import Kept, Origin
from worker.loading import Needs
from worker.parts import Parts
from worker.plans import Evict, Fits, Need, Plan
from worker.roster import Roster
from worker.wishes import PATIENT, Wishes

log = logging.getLogger(__name__)

GRACE_S: Final = 600.0
"""For what still runs in the old engine: an answer is not cut because a file is newer."""
PATIENCE_S: Final = 30.0
"""How long a busy engine whose place is needed serves new requests with the old file."""
REASON: Final = "its model has other files or another profile now"

PlanFor = Callable[[Kept, bool], Plan]
"""What one more engine of the model would take if this one did not count, and with True, if its memory were free."""


class Renewal:
    """Asked at each pass of the keeper."""

    def __init__(self, parts: Parts, roster: Roster, wishes: Wishes, plan: PlanFor) -> None:
        self._parts = parts
        self._roster = roster
        self._wishes = wishes
        self._plan = plan
        self._since: dict[str, float] = {}
        self._heirs: dict[str, str] = {}
        self._owed: set[str] = set()

    def look(self) -> None:
        """Do the next step for each engine that is not what it would be made as today."""
        stale = [each for each in self._roster.kept.values() if each.going is None and self._stale(each)]
        for engine_id in set(self._since).difference(each.engine_id for each in stale):
            del self._since[engine_id]
            self._heirs.pop(engine_id, None)
        for each in stale:
            self._step(each)

    def beside(self, kept: Kept) -> bool:
        """Whether this is the heir of an engine that serves on until it is ready."""
        return kept.engine_id in self._heirs.values()

    def _stale(self, kept: Kept) -> bool:
        entry = self._parts.catalogue.entry(kept.model)
        return entry is not None and self._parts.maker.spec(entry, kept.devices) != kept.engine.spec

    def _step(self, old: Kept) -> None:
        if old.engine_id not in self._since:
            self._since[old.engine_id] = self._parts.clock()
            log.info("engine_stale", extra={"event": "engine_stale", "engine": old.engine_id, "model": old.model})
        heir = self._roster.kept.get(self._heirs.get(old.engine_id, ""))
        if heir is not None and heir.going is None:
            if heir.engine.state == "ready":
                self._roster.go(old, REASON, "user-requested", grace_s=GRACE_S)
        elif self._usable(old) and not self._moving(old):
            self._replace(old)

    def _usable(self, old: Kept) -> bool:
        """Whether the new file is known to be one that an engine can load: else the old engine is kept."""
        needs, bars = self._parts.needs, self._parts.bars
        readable = any(isinstance(needs.of(old.model, kind), Needs) for kind in ("gpu", "cpu"))
        return readable and not any(bars.of(old.model, device) for device in old.devices)

    def _moving(self, old: Kept) -> bool:
        """Whether another engine of the model comes or goes, or one is to come in the place of one that went."""
        if old.model in self._owed and self._wishes.of(old.model) is not None:
            return True
        self._owed.discard(old.model)
        others = (each for each in self._roster.of(old.model) if each is not old)
        return any(each.going is not None or each.on_its_way for each in others)

    def _replace(self, old: Kept) -> None:
        plan = self._plan(old, False) if old.engine.state == "ready" else None
        if isinstance(plan, Fits) and plan.cost != CPU_TIGHT:
            heir = self._roster.add(old.model, plan.devices, plan.need or Need(0), _origin(old))
            self._heirs[old.engine_id] = heir.engine_id
        elif self._in_its_place(old):
            self._roster.go(old, REASON, "user-requested", grace_s=GRACE_S)
            now = self._parts.clock()
            self._wishes.put(old.model, _origin(old), now, now)
            self._owed.add(old.model)

    def _in_its_place(self, old: Kept) -> bool:
        """Whether the old engine is to go first."""
        waited_s = self._parts.clock() - self._since[old.engine_id]
        if self._parts.counter.usage.busy(old.engine_id) and waited_s < PATIENCE_S:
            return False
        plan = self._plan(old, True)
        return isinstance(plan, Fits) or (isinstance(plan, Evict) and _origin(old) not in PATIENT)


def _origin(old: Kept) -> Origin:
    return "held" if old.origin == "adopted" else old.origin
