"""What one engine takes: its cgroup's figures where it has one, else the sum over its processes. Blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.node import EngineUsage
from worker.cgroupfigures import CgroupFigures
from worker.procfigures import PROC, ProcessFigures, kinships, members, read_process, total

_SUMMED = (
    "threads", "open_files", "cpu_user_s", "cpu_system_s", "memory_bytes", "memory_anonymous_bytes",
    "memory_proportional_bytes", "swap_bytes", "read_bytes", "written_bytes", "read_ops", "write_ops",
)  # fmt: skip
_OF_CGROUP = (
    "processes", "threads", "cpu_user_s", "cpu_system_s", "cpu_throttled_s", "memory_bytes", "memory_anonymous_bytes",
    "swap_bytes", "read_bytes", "written_bytes", "read_ops", "write_ops", "out_of_memory_kills",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at an engine."""

    usage: EngineUsage
    processes: tuple[ProcessFigures, ...]

    @property
    def cpu_s(self) -> float | None:
        """User and system together."""
        user, system = self.usage.cpu_user_s, self.usage.cpu_system_s
        return None if user is None or system is None else user + system


def read_engines(
    pids: Mapping[str, int],
    at: float,
    *,
    cgroup: Callable[[str], CgroupFigures],
    scratch_bytes: Callable[[str], int | None],
    proc: Path = PROC,
) -> dict[str, Reading]:
    """A look at each engine, by its id and the pid of its process. One that is gone is left out."""
    kin = kinships(proc) if pids else {}
    readings = {
        engine: read_engine(members(pid, kin), cgroup(engine), scratch_bytes(engine), at, proc=proc)
        for engine, pid in pids.items()
    }
    return {engine: reading for engine, reading in readings.items() if reading.processes}


def read_engine(
    pids: list[int], cgroup: CgroupFigures, scratch_bytes: int | None, at: float, *, proc: Path = PROC
) -> Reading:
    """A look at the processes of one engine."""
    found = tuple(each for pid in pids if (each := read_process(pid, proc)) is not None)
    facts: dict[str, Any] = {name: total(getattr(each, name) for each in found) for name in _SUMMED}
    facts["processes"] = len(found)
    told = {name: getattr(cgroup, name) for name in _OF_CGROUP if getattr(cgroup, name) is not None}
    # one without the controller of memory tells of processors alone: a limit of memory is not its then
    source = "cgroup" if cgroup.memory_bytes is not None else "processes"
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in (facts | told).items()}
    usage = EngineUsage.model_validate({"sampled_at": at, "source": source, "scratch_bytes": scratch_bytes} | rounded)
    return Reading(usage, found)
