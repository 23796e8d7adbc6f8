"""GPUs as the Linux kernel shows them in /sys: memory and load of AMD's, sensors of AMD's and Intel's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schemas.node import DeviceMetrics
from worker.accelerators.figures import first, line_of, scaled_of, whole_of

SYS: Final = Path("/sys")
VENDORS: Final = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
_CORE_SENSORS: Final = ("edge", "pkg", "package")
_CLOCKS: Final = ("tile0/gt0/freq0/act_freq", "gt/gt0/rps_act_freq_mhz", "gt_act_freq_mhz")
"""Intel's, by driver: xe; i915; i915 of older kernels (the last two lie with the card, not with its PCI device)."""


@dataclass(slots=True)
class Card:
    """One GPU. Figures that its driver does not show are `None`."""

    pci: str
    vendor: str
    folder: Path
    """Of the PCI device."""
    drm: Path | None = None
    clock: Callable[[], float] = time.monotonic
    _energy: tuple[float, float] | None = field(default=None, init=False)

    def is_there(self) -> bool:
        """A GPU that fell off the bus has no folder, or one whose files give errors or nothing but ones."""
        return (line_of(self.folder / "vendor") or "").lower() in VENDORS

    def memory(self) -> tuple[int, int] | None:
        """Total and free bytes of its own memory."""
        total = whole_of(self.folder / "mem_info_vram_total")
        used = whole_of(self.folder / "mem_info_vram_used")
        if total is None:
            total, used = whole_of(self.folder / "tile0/physical_vram_size_bytes"), None
        if not total or used is None:
            return None
        return total, max(total - used, 0)

    def metrics(self) -> DeviceMetrics:
        """What the sensors say now."""
        memory = self.memory()
        sensors = self._sensors()
        energy_j = scaled_of(sensors / "energy1_input", 1e6) if sensors else None
        return DeviceMetrics(
            memory_used_bytes=memory[0] - memory[1] if memory else None,
            utilization_percent=scaled_of(self.folder / "gpu_busy_percent", 1),
            temperature_c=_temperature(sensors) if sensors else None,
            power_w=first(_power(sensors) if sensors else None, self._power_by_energy(energy_j)),
            power_limit_w=_limit(sensors) if sensors else None,
            energy_j=energy_j,
            clock_core_mhz=self._core_clock(sensors),
            clock_memory_mhz=scaled_of(sensors / "freq2_input", 1e6) if sensors else None,
        )

    def _sensors(self) -> Path | None:
        return next(iter(sorted(self.folder.glob("hwmon/hwmon*"))), None)

    def _core_clock(self, sensors: Path | None) -> float | None:
        amd = scaled_of(sensors / "freq1_input", 1e6) if sensors else None
        places = [folder / clock for clock in _CLOCKS for folder in (self.folder, self.drm) if folder]
        return first(amd, *(scaled_of(place, 1) for place in places))

    def _power_by_energy(self, energy_j: float | None) -> float | None:
        """Intel's discrete GPUs count energy only: the power is what was used since the last sample."""
        before, now = self._energy, self.clock()
        self._energy = None if energy_j is None else (energy_j, now)
        if before is None or energy_j is None or now <= before[1] or energy_j < before[0]:
            return None
        return (energy_j - before[0]) / (now - before[1])


def cards(root: Path = SYS) -> Iterator[Card]:
    """GPUs that a kernel driver holds, in the order of their PCI bus."""
    found: dict[str, Card] = {}
    for drm in sorted(root.glob("class/drm/card[0-9]*")):
        folder = drm / "device"
        vendor = VENDORS.get((line_of(folder / "vendor") or "").lower())
        pci = _slot(folder)
        if "-" not in drm.name and vendor and pci:
            found.setdefault(pci, Card(pci, vendor, folder, drm))
    yield from (found[pci] for pci in sorted(found))


def _slot(folder: Path) -> str | None:
    """The PCI address, from the kernel's own list of the device's properties."""
    try:
        lines = (folder / "uevent").read_text(errors="replace").splitlines()[:64]
    except OSError:
        return None
    return next((line.partition("=")[2].lower() for line in lines if line.startswith("PCI_SLOT_NAME=")), None)


def _temperature(sensors: Path) -> float | None:
    """The core's: by its label, else the first one there is."""
    inputs = sorted(sensors.glob("temp*_input"), key=lambda file: (len(file.name), file.name))
    labelled = [file for file in inputs if line_of(Path(str(file).replace("_input", "_label"))) in _CORE_SENSORS]
    return first(*(scaled_of(file, 1000) for file in (*labelled, *inputs)))


def _power(sensors: Path) -> float | None:
    return first(*(scaled_of(sensors / name, 1e6) for name in ("power1_average", "power1_input")))


def _limit(sensors: Path) -> float | None:
    return first(*(scaled_of(sensors / name, 1e6) for name in ("power1_cap", "power1_max")))
