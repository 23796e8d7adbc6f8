"""Apple's GPUs. Their memory is the host's, and Metal gives a process only a part of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

import psutil

from schemas.node import Device, DeviceMetrics
from worker.accelerators.figures import MIB, inside, parsed, size, text, whole
from worker.accelerators.listing import EngineList
from worker.accelerators.tool import Source, Tool

STATIC_S: Final = 3600.0
TIMEOUT_S: Final = 15.0
_METAL: Final = ("spdisplays_mtlgpufamilysupport", "spdisplays_metalfamily", "spdisplays_metal")
_OWN_MEMORY: Final = ("spdisplays_vram", "_spdisplays_vram")
_SMALL: Final = 36 << 30


class Metal:
    """`metal:0`: one on Apple silicon. Named by `system_profiler`, measured by the engine's list where it has one."""

    backend = "metal"

    def __init__(
        self,
        listing: EngineList | None = None,
        profiler: Source | None = None,
        limit: Source | None = None,
        platform: str = sys.platform,
    ) -> None:
        self._here = platform == "darwin"
        self._listing = listing
        self._profiler = profiler or Tool(
            ("system_profiler", "SPDisplaysDataType", "-json"), every_s=STATIC_S, timeout_s=TIMEOUT_S
        )
        self._limit = limit or Tool(("sysctl", "-n", "iogpu.wired_limit_mb"), every_s=STATIC_S)

    def discover(self) -> bool:
        """Whether this is macOS with a GPU that speaks Metal."""
        return self._here and bool(self.sample())

    def sample(self) -> list[Device]:
        """The devices of now."""
        listed = [entry for entry in (self._listing.read() if self._listing else ()) if entry.backend == self.backend]
        sizes = [(entry.name, entry.total_bytes) for entry in listed] or list(self._profiled())
        return [_device(index, *each) for index, each in enumerate(sizes)]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Nothing: Metal knows no such variable. Engines on the CPU are told `--device none`."""
        return {}

    def _profiled(self) -> Iterator[tuple[str, int]]:
        found = inside(parsed(self._profiler.read()), "SPDisplaysDataType")
        for item in cast(list[Any], found) if isinstance(found, list) else []:
            name = text(inside(item, "sppci_model")) or text(inside(item, "_name"))
            if name and any(text(inside(item, field)) for field in _METAL):
                own = next((size(inside(item, field)) for field in _OWN_MEMORY if size(inside(item, field))), None)
                yield name, own or self._share_of_host()

    def _share_of_host(self) -> int:
        """What Metal recommends as the most: set by a person, else two thirds on small Macs and three quarters."""
        told_mib = whole((self._limit.read() or "").strip()) or 0
        total = int(psutil.virtual_memory().total)
        return told_mib * MIB if told_mib > 0 else total * 2 // 3 if total <= _SMALL else total * 3 // 4


def _device(index: int, name: str, total_bytes: int) -> Device:
    free = min(total_bytes, int(psutil.virtual_memory().available))
    return Device(
        device=f"metal:{index}",
        backend="metal",
        name=name,
        memory_total_bytes=total_bytes,
        memory_free_bytes=free,
        metrics=DeviceMetrics(memory_used_bytes=total_bytes - free),
        unified_memory=True,
    )
