"""Devices through Vulkan, whoever made them: what is left when no backend of the vendor's own has the card."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from worker.accelerators.drm import SYS
from worker.accelerators.listed import EngineDevices, Witness, numbered
from worker.accelerators.listing import EngineList

VARIABLE: Final = "GGML_VK_VISIBLE_DEVICES"


class Vulkan(EngineDevices):
    """`vulkan:0` is the engine's `Vulkan0`. The variable counts otherwise: it takes Vulkan's own numbers, integrated
    GPUs and second drivers included, that the engine leaves out of its list."""

    def __init__(
        self,
        listing: EngineList,
        *,
        rivals: Collection[str] = (),
        beside: Sequence[Witness] = (),
        root: Path = SYS,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__("vulkan", listing, rivals=rivals, beside=beside, root=root)
        self._given = environ.get(VARIABLE)
        self._numbers: dict[int, int] = {}

    def discover(self) -> bool:
        """Whether the engine lists any. Finds out Vulkan's numbers for them."""
        mine = self.entries()
        if self._given is not None:
            words = [word for word in self._given.replace(",", " ").split() if word.isdigit()]
            self._numbers = {index: int(word) for index, word in enumerate(words)}
        else:
            self._numbers = numbered(self._listing, mine, lambda number: {VARIABLE: str(number)})
        return bool(mine)

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """These devices and no other; without any, none."""
        indices = (int(device.partition(":")[2]) for device in devices)
        return {VARIABLE: ",".join(str(self._numbers.get(index, index)) for index in indices)}
