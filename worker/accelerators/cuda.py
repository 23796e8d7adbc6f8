"""NVIDIA's devices: through NVML, else `nvidia-smi`.

`cuda:0` and up, in the order of their PCI bus, as engines see them with `CUDA_DEVICE_ORDER=PCI_BUS_ID`; `cuda:0.1` is a
MIG instance. An engine is pinned by ids, which are the same after a reboot, in a container and when a GPU is missing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pynvml

from schemas.node import Device
from worker.accelerators.nvidia_smi import NvidiaSmi
from worker.accelerators.nvml import Nvml
from worker.accelerators.visible import Visible

log = logging.getLogger(__name__)


class Cuda:
    """Those that the worker's own `CUDA_VISIBLE_DEVICES` leaves it."""

    backend = "cuda"

    def __init__(
        self, nvml: Any = pynvml, smi: NvidiaSmi | None = None, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._nvml = Nvml(nvml)
        self._smi = smi or NvidiaSmi()
        self._visible = Visible.of(environ.get("CUDA_VISIBLE_DEVICES"))
        self._shown: dict[str, str] = {}

    def discover(self) -> bool:
        """Whether there is a driver and a device."""
        return bool(self.sample())

    def sample(self) -> list[Device]:
        """The devices of now. One that fell off the bus is not among them, and comes back when it does."""
        found = self._nvml.devices()
        if found is None:
            found = self._smi.devices() or []
        chosen = self._visible.choose([(_number(device), device) for device in found])
        self._shown |= {device.device: device.uuid or str(number) for number, device in chosen}
        return [device for _, device in chosen]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """These devices and no other; without any, none. CUDA takes one MIG instance a process: the first one."""
        shown = [self._shown.get(device) or device.partition(":")[2] for device in devices]
        if len(shown) > 1 and any("." in device for device in devices):
            log.warning("mig_alone", extra={"event": "mig_alone", "devices": ",".join(devices)})
            shown = shown[:1]
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(shown) or "-1"}


def _number(device: Device) -> int:
    """NVML's number of the GPU, also for a part of it."""
    return int(device.device.partition(":")[2].partition(".")[0])
