"""Engines whose model has got other files or another profile: a new one takes over, the old one ends what it has.

The new engine starts beside the old one where a plan allows it, and the old one serves until the new one is ready.
Where there is no room for both, the old one goes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from worker.kept import Kept, Origin
from worker.parts import Parts
from worker.plans import Fits, Need, Plan
from worker.roster import Roster
from worker.wishes import Wishes

GRACE_S: Final = 600.0
"""For what still runs in the old engine: an answer is not cut because a file is newer."""
REASON: Final = "its model has other files or another profile now"


class Renewal:
    """Asked at each pass of the keeper. `plan` says what one more engine of a model would take."""

    def __init__(self, parts: Parts, roster: Roster, wishes: Wishes, plan: Callable[[str], Plan]) -> None:
        self._parts = parts
        self._roster = roster
        self._wishes = wishes
        self._plan = plan

    def look(self) -> None:
        """Do the next step for each engine that is not what it would be made as today."""
        for each in tuple(self._roster.kept.values()):
            if each.going is None and self._stale(each):
                self._step(each)

    def _stale(self, kept: Kept) -> bool:
        entry = self._parts.catalogue.entry(kept.model)
        return entry is not None and self._parts.maker.spec(entry, kept.devices) != kept.engine.spec

    def _step(self, old: Kept) -> None:
        fresh = [each for each in self._roster.of(old.model) if each.going is None and not self._stale(each)]
        if any(each.engine.state == "ready" for each in fresh):
            self._go(old)
        elif not fresh:
            plan = self._plan(old.model) if old.engine.state == "ready" else None
            if isinstance(plan, Fits):
                self._roster.add(old.model, plan.devices, plan.need or Need(0), _origin(old))
            elif old.engine.state != "ready" or self._readable(old):
                self._go(old)
                now = self._parts.clock()
                self._wishes.put(old.model, _origin(old), now, now)

    def _readable(self, old: Kept) -> bool:
        """Whether the new file is known to be one that an engine can load: else the old engine is kept."""
        needs = self._parts.needs
        return any(not isinstance(needs.of(old.model, kind), str | None) for kind in ("gpu", "cpu"))

    def _go(self, old: Kept) -> None:
        self._roster.go(old, REASON, "user-requested", grace_s=GRACE_S)


def _origin(old: Kept) -> Origin:
    return "held" if old.origin == "adopted" else old.origin
