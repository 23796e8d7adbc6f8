"""Engines that take more than their limits allow and that no kernel holds back: told, then ended and started anew.

The references do the same to containers (`force_terminate_abusing_containers`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from schemas.node import EngineUsage
from worker.devices import aside
from worker.engineusage import read_engines
from worker.limits import NEAR_SHARE, EngineLimits, excess
from worker.usage import Sources, Watched

log = logging.getLogger(__name__)


class Watchman:
    """Looks at engines that have a limit on memory or scratch. `on_abuse(engine, reason)` is called from the event
    loop, once for each process that has to go."""

    def __init__(
        self,
        sources: Sources,
        limits_of: Callable[[str], EngineLimits],
        on_abuse: Callable[[str, str], None],
        *,
        interval_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._sources = sources
        self._limits_of = limits_of
        self._on_abuse = on_abuse
        self._interval_s = interval_s
        self._clock = clock
        self._warned: set[Watched] = set()
        self._ended: set[Watched] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.look()

    async def look(self) -> None:
        """One look at all of them."""
        watched = [each for each in self._sources.engines() if _limited(self._limits_of(each.model))]
        self._warned &= set(watched)
        self._ended &= set(watched)
        for each, usage in await self._measured(watched):
            self._judge(each, usage, self._limits_of(each.model))

    async def _measured(self, watched: Sequence[Watched]) -> list[tuple[Watched, EngineUsage]]:
        if not watched:
            return []
        pids, at, sources = {each.engine: each.pid for each in watched}, self._clock(), self._sources
        found = await aside(
            lambda: read_engines(pids, at, cgroup=sources.cgroup, scratch_bytes=sources.scratch_bytes),
            "abuse",
        )
        return [(each, found[each.engine].usage) for each in watched if each.engine in found]

    def _judge(self, each: Watched, usage: EngineUsage, limits: EngineLimits) -> None:
        reason = excess(usage, limits)
        fields = {"event": "engine_abuse", "engine": each.engine, "model": each.model}
        if reason is not None and each not in self._ended:
            self._ended.add(each)
            log.warning("engine_abuse", extra=fields | {"reason": reason})
            self._on_abuse(each.engine, reason)
        elif reason is None and _near(usage, limits) and each not in self._warned:
            self._warned.add(each)
            sizes = {"scratch_bytes": usage.scratch_bytes, "limit_bytes": limits.scratch_bytes}
            log.warning("scratch_nearly_full", extra=fields | {"event": "scratch_nearly_full"} | sizes)


def _limited(limits: EngineLimits) -> bool:
    return limits.memory_bytes is not None or limits.scratch_bytes is not None


def _near(usage: EngineUsage, limits: EngineLimits) -> bool:
    return limits.scratch_bytes is not None and (usage.scratch_bytes or 0) > limits.scratch_bytes * NEAR_SHARE
