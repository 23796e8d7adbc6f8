"""Google's TPUs: known, and of no use to llama.cpp, which has no backend for them. A person who has one is told so."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from schemas.node import Device
from worker.accelerators.drm import SYS
from worker.accelerators.figures import line_of

log = logging.getLogger(__name__)

_GOOGLE: Final = "0x1ae0"
_CHIPS: Final = {
    "0x0027": "TPU v2 or v3",
    "0x0056": "TPU",
    "0x005e": "TPU v4",
    "0x0062": "TPU v5p",
    "0x0063": "TPU v5e",
    "0x006f": "TPU v6e",
}
"""PCI devices. Others of this vendor are network cards and disks of its cloud."""
_CORAL: Final = ("0x1ac1", "0x089a")


class Tpu:
    """Never has a device."""

    backend = "tpu"

    def __init__(self, root: Path = SYS) -> None:
        self._root = root

    def discover(self) -> bool:
        """No. Says so in the log where there is one."""
        for text in self.notices():
            log.warning("accelerator_unusable", extra={"event": "accelerator_unusable", "reason": text})
        return False

    def notices(self) -> list[str]:
        """For `puna doctor`: a sentence for each kind of chip that is here."""
        return [
            f"{name} found ({count}): llama.cpp has no backend for TPUs, so Puna cannot use it; models run on the "
            "other devices of this node"
            for name, count in sorted(self._counted().items())
        ]

    def sample(self) -> list[Device]:
        """None."""
        return []

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def _counted(self) -> dict[str, int]:
        names = list(self._names())
        return {name: names.count(name) for name in names}

    def _names(self) -> Iterator[str]:
        for folder in self._root.glob("bus/pci/devices/*"):
            vendor, device = line_of(folder / "vendor"), line_of(folder / "device")
            if vendor == _GOOGLE and device in _CHIPS:
                yield _CHIPS[device]
            elif (vendor, device) == _CORAL:
                yield "Coral Edge TPU"
