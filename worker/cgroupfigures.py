"""What a cgroup tells of itself. Any file or field may be missing: controllers, kernels and configurations differ.

Formats: the kernel's Documentation/admin-guide/cgroup-v2.rst, "Format" and "Interface Files".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MICRO: Final = 1e-6
_BLOCK_DEVICES: Final = Path("/sys/dev/block")


@dataclass(frozen=True, slots=True)
class CgroupFigures:
    """`None`: not told. Totals count since the cgroup was made."""

    processes: int | None = None
    threads: int | None = None
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    cpu_throttled_s: float | None = None
    memory_bytes: int | None = None
    """Page cache of its files included."""
    memory_peak_bytes: int | None = None
    memory_anonymous_bytes: int | None = None
    memory_file_bytes: int | None = None
    swap_bytes: int | None = None
    out_of_memory: int | None = None
    """How often its limit was reached and nothing could be freed."""
    out_of_memory_kills: int | None = None
    """Processes that were killed for that."""
    read_bytes: int | None = None
    written_bytes: int | None = None
    read_ops: int | None = None
    write_ops: int | None = None

    @property
    def cpu_s(self) -> float | None:
        """User and system together."""
        both = (self.cpu_user_s, self.cpu_system_s)
        return None if both[0] is None or both[1] is None else both[0] + both[1]


def figures(folder: Path, devices: Path = _BLOCK_DEVICES) -> CgroupFigures:
    """The figures of now; of a cgroup that is gone, nothing."""
    cpu, memory = flat(folder / "cpu.stat"), flat(folder / "memory.stat")
    events, disks = flat(folder / "memory.events"), _disks(folder / "io.stat", devices)
    return CgroupFigures(
        processes=_count(folder / "cgroup.procs"),
        threads=_count(folder / "cgroup.threads"),
        cpu_user_s=_seconds(cpu, "user_usec"),
        cpu_system_s=_seconds(cpu, "system_usec"),
        cpu_throttled_s=_seconds(cpu, "throttled_usec"),
        memory_bytes=number(folder / "memory.current"),
        memory_peak_bytes=number(folder / "memory.peak"),
        memory_anonymous_bytes=memory.get("anon"),
        memory_file_bytes=memory.get("file"),
        swap_bytes=number(folder / "memory.swap.current"),
        out_of_memory=events.get("oom"),
        out_of_memory_kills=events.get("oom_kill"),
        read_bytes=disks.get("rbytes"),
        written_bytes=disks.get("wbytes"),
        read_ops=disks.get("rios"),
        write_ops=disks.get("wios"),
    )


def flat(file: Path) -> dict[str, int]:
    """A "flat keyed" file: `KEY VALUE` lines. Empty where there is none."""
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _whole(pair[1])}


def number(file: Path) -> int | None:
    """The one number of a file; `None` for `max`, and where there is none."""
    text = _text(file).strip()
    return int(text) if _whole(text) else None


def _disks(file: Path, devices: Path) -> dict[str, int]:
    """Sums of a "nested keyed" file: `8:16 rbytes=1 wbytes=2 …`. What goes through a device that stands on others is
    counted there too, so only the lowest are summed."""
    sums: dict[str, int] = {}
    for line in _text(file).splitlines():
        name, *pairs = line.split() or [""]
        if _stands_on_others(devices / name):
            continue
        for key, _, value in (pair.partition("=") for pair in pairs):
            if _whole(value):
                sums[key] = sums.get(key, 0) + int(value)
    return sums


def _stands_on_others(device: Path) -> bool:
    try:
        return any((device / "slaves").iterdir())
    except (OSError, ValueError):  # a name that no path can have
        return False


def _seconds(values: Mapping[str, int], key: str) -> float | None:
    return values[key] * _MICRO if key in values else None


def _count(file: Path) -> int | None:
    try:
        return len(file.read_text(errors="replace").split())
    except OSError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20
