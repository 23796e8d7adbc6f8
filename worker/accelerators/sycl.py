"""Intel's devices through SYCL (oneAPI)."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from worker.accelerators.drm import SYS
from worker.accelerators.listed import EngineDevices, Witness, numbered
from worker.accelerators.listing import EngineList

VARIABLE: Final = "ONEAPI_DEVICE_SELECTOR"
_PLAIN: Final = re.compile(r"level_zero:(\d+(?:,\d+)*)")


class Sycl(EngineDevices):
    """`sycl:0` is the engine's `SYCL0`: engines put the largest GPU first, and Level Zero does not."""

    def __init__(
        self,
        listing: EngineList,
        *,
        rivals: Collection[str] = (),
        beside: Sequence[Witness] = (),
        root: Path = SYS,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__("sycl", listing, rivals=rivals, beside=beside, root=root)
        self._given = environ.get(VARIABLE)
        self._numbers: dict[int, int] = {}

    def discover(self) -> bool:
        """Whether the engine lists any. Finds out Level Zero's numbers for them."""
        mine = self.entries()
        if self._may_choose():
            allowed = self._allowed()
            self._numbers = numbered(self._listing, mine, lambda place: selector([_at(allowed, place)]))
        return bool(mine)

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """These devices and no other. Nothing without any: no value hides all GPUs and leaves the runtime able to
        start, so engines on the CPU are told `--device none`. Nothing too where a person's own choice is not plain."""
        if not devices or not self._may_choose():
            return {}
        allowed = self._allowed()
        indices = (int(device.partition(":")[2]) for device in devices)
        return selector([_at(allowed, self._numbers.get(index, index)) for index in indices])

    def _may_choose(self) -> bool:
        return self._given is None or _PLAIN.fullmatch(self._given) is not None

    def _allowed(self) -> list[int]:
        """Level Zero's numbers that the worker's own variable leaves; empty for all."""
        hit = _PLAIN.fullmatch(self._given or "")
        return [int(word) for word in hit[1].split(",")] if hit else []


def selector(numbers: Sequence[int]) -> dict[str, str]:
    """The variable that chooses GPUs by Level Zero's numbers."""
    return {VARIABLE: f"level_zero:{','.join(str(number) for number in numbers)}"}


def _at(allowed: Sequence[int], place: int) -> int:
    return allowed[place] if place < len(allowed) else place
