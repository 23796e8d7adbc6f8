"""What processes take, read from /proc; elsewhere, and where /proc does not tell, as far as psutil knows.

Formats: proc_pid_stat(5), proc_pid_status(5), proc_pid_io(5), proc_pid_smaps(5). A process may end between two files,
and may belong to somebody else: what cannot be read is `None`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

PROC: Final = Path("/proc")
PROPORTIONAL_LIMIT_BYTES: Final = 1 << 30
"""Of a larger process the proportional size is not asked for: the kernel walks all its pages for that."""
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """One process. Totals count since it started; those of its children that have ended are in its own times."""

    pid: int
    started: float
    """When, by a clock of the kernel: tells a process from a later one with its pid."""
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    threads: int | None = None
    open_files: int | None = None
    memory_bytes: int | None = None
    memory_anonymous_bytes: int | None = None
    memory_proportional_bytes: int | None = None
    swap_bytes: int | None = None
    read_bytes: int | None = None
    """From disks."""
    written_bytes: int | None = None
    read_ops: int | None = None
    """System calls, to disks or not."""
    write_ops: int | None = None

    @property
    def cpu_s(self) -> float | None:
        """User and system together."""
        if self.cpu_user_s is None or self.cpu_system_s is None:
            return None
        return self.cpu_user_s + self.cpu_system_s


@dataclass(frozen=True, slots=True)
class Kin:
    """Where a process belongs."""

    parent: int
    group: int


def kinships(proc: Path = PROC) -> dict[int, Kin]:
    """All processes of the host."""
    if sys.platform != "linux":
        return {each.pid: Kin(each.info["ppid"], 0) for each in psutil.process_iter(["ppid"])}
    found: dict[int, Kin] = {}
    with suppress(OSError):
        for entry in os.scandir(proc):
            if entry.name.isdigit() and (fields := _stat(Path(entry.path))):
                found[int(entry.name)] = Kin(int(fields[1]), int(fields[2]))
    return found


def members(root: int, kin: Mapping[int, Kin]) -> list[int]:
    """A process, its group, and all that descends from them: an engine, what it started, what was left of that."""
    found = {pid for pid, each in kin.items() if pid == root or each.group == root}
    children: dict[int, list[int]] = {}
    for pid, each in kin.items():
        children.setdefault(each.parent, []).append(pid)
    ahead = list(found)
    while ahead:
        fresh = [pid for pid in children.get(ahead.pop(), ()) if pid not in found]
        found.update(fresh)
        ahead += fresh
    return sorted(found)


def read_process(pid: int, proc: Path = PROC) -> ProcessFigures | None:
    """The figures of now; `None` if it is gone, or nothing but a zombie."""
    return _from_proc(pid, proc / str(pid)) if sys.platform == "linux" else _from_psutil(pid)


def _from_proc(pid: int, folder: Path) -> ProcessFigures | None:
    fields = _stat(folder)
    if not fields or fields[0] in "ZX":
        return None
    status, io = _keyed(folder / "status"), _keyed(folder / "io")
    resident = _kib(status, "VmRSS")
    return ProcessFigures(
        pid,
        started=int(fields[19]) / _TICKS_PER_S,
        cpu_user_s=(int(fields[11]) + int(fields[13])) / _TICKS_PER_S,
        cpu_system_s=(int(fields[12]) + int(fields[14])) / _TICKS_PER_S,
        threads=int(fields[17]),
        open_files=_entries(folder / "fd"),
        memory_bytes=resident,
        memory_anonymous_bytes=_kib(status, "RssAnon"),
        memory_proportional_bytes=_proportional(folder, resident),
        swap_bytes=_kib(status, "VmSwap"),
        read_bytes=io.get("read_bytes"),
        written_bytes=io.get("write_bytes"),
        read_ops=io.get("syscr"),
        write_ops=io.get("syscw"),
    )


def _stat(folder: Path) -> list[str]:
    """The fields after the name, the state first; the name may hold anything, parentheses too."""
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return []
    fields = text.rpartition(")")[2].split()
    return fields if len(fields) >= 20 else []


def _keyed(file: Path) -> dict[str, int]:
    """`Name: number …` lines."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = ((name, rest.split()) for name, _, rest in (line.partition(":") for line in lines))
    return {name: int(words[0]) for name, words in pairs if words and words[0].isascii() and words[0].isdigit()}


def _kib(status: Mapping[str, int], key: str) -> int | None:
    return status[key] * _KIB if key in status else None


def _proportional(folder: Path, resident: int | None) -> int | None:
    if resident is None or resident > PROPORTIONAL_LIMIT_BYTES:
        return None
    return _kib(_keyed(folder / "smaps_rollup"), "Pss")


def _entries(folder: Path) -> int | None:
    try:
        return len(os.listdir(folder))  # noqa: PTH208 - only their number is wanted
    except OSError:
        return None


def _from_psutil(pid: int) -> ProcessFigures | None:
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times, memory = process.cpu_times(), process.memory_info()
            return ProcessFigures(
                pid, process.create_time(), times.user, times.system, process.num_threads(), memory_bytes=memory.rss
            )
    except psutil.Error:
        return None


def total(figures: Iterable[int | float | None]) -> int | float | None:
    """The sum of what is known; `None` if nothing is."""
    known = [each for each in figures if each is not None]
    return sum(known) if known else None
