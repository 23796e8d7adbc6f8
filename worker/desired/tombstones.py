"""When the record of a deleted model may go: when every node has seen it, and nobody has anything of the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from worker.desired.nodes import Nodes
from worker.desired.records import Models, Seen

LOOK_AGAIN_S: Final = 2.0
"""After somebody still had a copy; twice as long each time, up to `LOOK_LATEST_S`."""
LOOK_LATEST_S: Final = 60.0
ABSENT_KEEP_S: Final = 86_400.0
"""For so long it waits for nodes that are away with a copy."""
SPREAD: Final = 0.5
"""Of the time that a tombstone stays: nodes look one after the other, and the first takes it away for all."""


@dataclass(slots=True)
class _Grave:
    revision: int
    since: float
    due_at: float
    looks: int = 0


class Tombstones:
    """Those that this node has seen, and since when, by its own clock."""

    def __init__(
        self,
        models: Models,
        nodes: Nodes,
        *,
        tombstone_s: float,
        monotonic: Callable[[], float] = time.monotonic,
        dice: Callable[[], float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._nodes = nodes
        self._stays_s = tombstone_s
        self._monotonic = monotonic
        self._dice = dice
        self._clock = clock
        self._graves: dict[str, _Grave] = {}

    def due_at(self) -> float:
        """When to look at one; infinite: there is none."""
        return min((grave.due_at for grave in self._graves.values()), default=float("inf"))

    async def settle(self, seen: Mapping[str, Seen], busy: Collection[str]) -> None:
        """Take away those that have done their work. `busy`: models of which this node has something. Raises
        `PunaError`."""
        now = self._monotonic()
        buried = {model: one for model, one in seen.items() if one.record is not None and one.record.deleting}
        for model in self._graves.keys() - buried.keys():
            del self._graves[model]
        for model, one in buried.items():
            grave = self._graves.get(model)
            if grave is None or grave.revision != one.revision:
                due_at = now + self._stays_s * (1 + SPREAD * self._dice())
                grave = self._graves[model] = _Grave(one.revision, now, due_at)
            if now >= grave.due_at:
                await self._look(model, one, grave, busy)

    async def _look(self, model: str, one: Seen, grave: _Grave, busy: Collection[str]) -> None:
        grave.looks += 1
        grave.due_at = self._monotonic() + min(LOOK_AGAIN_S * 2 ** min(grave.looks - 1, 8), LOOK_LATEST_S)
        if model in busy:
            return
        holding = await self._models.holding(model)
        if self._clock() - one.created_at > ABSENT_KEEP_S:
            holding &= (await self._nodes.live()).keys()
        if not holding:
            await self._models.take_away(model, one.revision)
