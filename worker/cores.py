"""How many processors this process may use: what its affinity and its cgroups allow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """At least one. A container's `cpu.max` counts in whole processors, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup / "cpu.max")
    return cores if quota is None else max(1, min(cores, quota))


def _quota(file: Path) -> int | None:
    try:
        limit, period = file.read_text(errors="replace").split()
        return -(-int(limit) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
