"""The host's processors and memory, within what a cgroup allows."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from schemas.node import Device, DeviceMetrics

CGROUP: Final = Path("/sys/fs/cgroup")
CPU_INFO: Final = Path("/proc/cpuinfo")
_CACHE: Final = ("inactive_file", "active_file")


class Cpu:
    """`cpu:0`: all processors together."""

    backend = "cpu"

    def __init__(self, cgroup: Path = CGROUP, cpu_info: Path = CPU_INFO) -> None:
        self._cgroup = cgroup
        self._name = _name(cpu_info)

    def discover(self) -> bool:
        """Every host has one. The first figure of utilisation is since now."""
        psutil.cpu_percent(None)
        return True

    def sample(self) -> list[Device]:
        """The one device. Free memory is what an engine could have without anything being swapped out."""
        memory = psutil.virtual_memory()
        total, free = int(memory.total), int(memory.available)
        limit = _whole(self._cgroup / "memory.max")
        if limit is not None and limit < total:
            used = (_whole(self._cgroup / "memory.current") or 0) - self._reclaimable()
            total, free = limit, max(min(free, limit - used), 0)
        metrics = DeviceMetrics(memory_used_bytes=total - free, utilization_percent=psutil.cpu_percent(None))
        return [
            Device(
                device="cpu:0",
                backend="cpu",
                name=self._name,
                memory_total_bytes=total,
                memory_free_bytes=free,
                metrics=metrics,
            )
        ]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Nothing: every engine sees the processors."""
        return {}

    def _reclaimable(self) -> int:
        """Page cache that counts as used memory of the cgroup and is given up under pressure: mapped model files."""
        try:
            lines = (self._cgroup / "memory.stat").read_text(errors="replace").splitlines()
        except OSError:
            return 0
        pairs = (line.split() for line in lines)
        return sum(_count(pair[1]) or 0 for pair in pairs if len(pair) == 2 and pair[0] in _CACHE)


def _whole(file: Path) -> int | None:
    """The number in a cgroup's file; `None` for `max`, and where there is no such file."""
    try:
        text = file.read_text(errors="replace").strip()
    except OSError:
        return None
    return _count(text)


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def _name(cpu_info: Path) -> str:
    count = psutil.cpu_count() or 1
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()} ({count} threads)"
