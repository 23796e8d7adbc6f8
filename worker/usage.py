"""What engines, their processes and the host take: read aside from the event loop, each kind at its own interval.

A reading that never ends (a dead network disk) costs its own kind and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from schemas.node import EngineUsage, NodeUsage
from worker.cgroupfigures import CgroupFigures
from worker.devices import aside
from worker.engineusage import Reading, read_engines
from worker.hostfigures import read_host
from worker.moving import Moved, MovingStatistics
from worker.procfigures import ProcessFigures
from worker.scopes import Scope, StatisticsSettings

log = logging.getLogger(__name__)

ScopeName = Literal["node", "engine", "process"]
SCOPES: Final[tuple[ScopeName, ...]] = ("node", "engine", "process")


@dataclass(frozen=True, slots=True)
class Watched:
    """An engine that has a process."""

    engine: str
    model: str
    pid: int


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """One process of an engine."""

    engine: str
    figures: ProcessFigures
    cpu_percent: float | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Over NATS, since the worker started."""

    received_bytes: int
    sent_bytes: int


class Counted(Protocol):
    """Who counts readings."""

    def statistics_begun(self, scope: str) -> None:
        """A reading begins."""
        ...

    def statistics_done(self, scope: str) -> None:
        """It went well."""
        ...

    def statistics_failed(self, scope: str, error: Exception) -> None:
        """It did not."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """Where figures come from. `cgroup` and `scratch_bytes` are called from a thread."""

    engines: Callable[[], Sequence[Watched]]
    places: Mapping[str, Path]
    cgroup: Callable[[str], CgroupFigures]
    scratch_bytes: Callable[[str], int | None]
    traffic: Callable[[], Traffic | None] = lambda: None


class Usage:
    """The figures of now, and what became of them."""

    def __init__(
        self,
        settings: StatisticsSettings,
        sources: Sources,
        counted: Counted,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.node: NodeUsage | None = None
        self.processes: tuple[ProcessUsage, ...] = ()
        self._settings = settings
        self._sources = sources
        self._counted = counted
        self._clock = clock
        self._engines: dict[str, EngineUsage] = {}
        self._moving: dict[tuple[str, str, str], MovingStatistics] = {}
        self._pids: dict[str, int] = {}

    def engine(self, engine: str) -> EngineUsage | None:
        """The last figures of an engine; `None` before the first, and once it is gone."""
        return self._engines.get(engine)

    def moved(self) -> dict[tuple[str, str, str], Moved]:
        """By scope, subject (engine id, or empty) and figure."""
        return {key: moved for key, each in self._moving.items() if (moved := each.moved) is not None}

    async def run(self) -> None:
        """Read until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in SCOPES:
                scope: Scope = getattr(self._settings, name)
                if scope.enabled:
                    group.create_task(self._repeat(name, scope.interval_s), name=f"statistics of {name}")

    async def _repeat(self, name: ScopeName, interval_s: float) -> None:
        while True:
            await self.sample(name)
            await asyncio.sleep(interval_s)

    async def sample(self, name: ScopeName) -> None:
        """Read one kind now."""
        read = {"node": self._read_node, "engine": self._read_engines, "process": self._read_processes}[name]
        self._counted.statistics_begun(name)
        try:
            await read()
        except Exception as error:  # one bad reading is no reason to have no further ones
            self._counted.statistics_failed(name, error)
            log.exception("statistics_failed", extra={"event": "statistics_failed", "scope": name})
        else:
            self._counted.statistics_done(name)

    # -- kinds -------------------------------------------------------------------------------------------------------
    async def _read_node(self) -> None:
        at, places = self._clock(), self._sources.places
        found = await aside(lambda: read_host(places, at), "statistics-node")
        traffic = self._sources.traffic()
        values = {
            "cpu_percent": found.cpu_percent,
            "memory_available_bytes": found.memory_available_bytes,
            "network_received_bytes": found.network_received_bytes,
            "network_sent_bytes": found.network_sent_bytes,
        }
        self._move("node", "", values, at)
        self.node = found.model_copy(
            update={
                "network_received_bytes_per_s": self._rate("node", "", "network_received_bytes"),
                "network_sent_bytes_per_s": self._rate("node", "", "network_sent_bytes"),
                "bus_received_bytes": traffic.received_bytes if traffic else None,
                "bus_sent_bytes": traffic.sent_bytes if traffic else None,
            }
        )

    async def _read_engines(self) -> None:
        watched = self._sources.engines()
        readings = await self._readings(watched)
        self._forget("engine", {each.engine: each.pid for each in watched})
        self._engines = {name: self._moved_engine(name, reading) for name, reading in readings.items()}

    async def _readings(self, watched: Sequence[Watched]) -> dict[str, Reading]:
        at, sources = self._clock(), self._sources
        pids = {each.engine: each.pid for each in watched}
        return await aside(
            lambda: read_engines(pids, at, cgroup=sources.cgroup, scratch_bytes=sources.scratch_bytes),
            "statistics-engines",
        )

    def _moved_engine(self, engine: str, reading: Reading) -> EngineUsage:
        usage = reading.usage
        values = {
            "cpu_s": reading.cpu_s,
            "memory_bytes": usage.memory_bytes,
            "read_bytes": usage.read_bytes,
            "written_bytes": usage.written_bytes,
            "scratch_bytes": usage.scratch_bytes,
        }
        self._move("engine", engine, values, usage.sampled_at)
        rate = self._rate("engine", engine, "cpu_s")
        return usage.model_copy(update={"cpu_percent": None if rate is None else round(max(rate, 0.0) * 100, 2)})

    async def _read_processes(self) -> None:
        watched, at = self._sources.engines(), self._clock()
        readings = await self._readings(watched)
        found: list[ProcessUsage] = []
        for engine, reading in readings.items():
            for each in reading.processes:
                subject = f"{each.pid}@{each.started}"
                self._move("process", subject, {"cpu_s": each.cpu_s}, at)
                rate = self._rate("process", subject, "cpu_s")
                found.append(ProcessUsage(engine, each, None if rate is None else rate * 100))
        alive = {f"{each.figures.pid}@{each.figures.started}" for each in found}
        self._drop(key for key in self._moving if key[0] == "process" and key[1] not in alive)
        self.processes = tuple(found)

    # -- what became of them -----------------------------------------------------------------------------------------
    def _move(self, scope: str, subject: str, values: Mapping[str, float | int | None], at: float) -> None:
        for name, value in values.items():
            if value is not None:
                self._moving.setdefault((scope, subject, name), MovingStatistics()).update(value, at)

    def _rate(self, scope: str, subject: str, name: str) -> float | None:
        moving = self._moving.get((scope, subject, name))
        return moving.rate if moving is not None else None

    def _forget(self, scope: str, pids: Mapping[str, int]) -> None:
        """An engine that is gone, or is another process now, begins anew."""
        stale = {name for name, pid in self._pids.items() if pids.get(name) != pid}
        self._pids = dict(pids)
        self._drop(key for key in self._moving if key[0] == scope and key[1] in stale)

    def _drop(self, keys: Iterable[tuple[str, str, str]]) -> None:
        for key in list(keys):
            del self._moving[key]
