"""NVIDIA's devices through NVML. A host without a driver has none; a figure that a device does not tell is left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pynvml

from schemas.node import Device, DeviceMetrics

log = logging.getLogger(__name__)

T = TypeVar("T")


class Cuda:
    """`cuda:0` and up, in the order of their PCI bus, as engines see them with `CUDA_DEVICE_ORDER=PCI_BUS_ID`."""

    backend = "cuda"

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._uuids: dict[str, str] = {}

    def discover(self) -> bool:
        """Whether there is a driver and a device. Only then NVML stays loaded."""
        try:
            self._nvml.nvmlInit()
            count = int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            log.debug("no_nvidia", extra={"event": "no_nvidia", "reason": str(error)})
            return False
        return count > 0

    def sample(self) -> list[Device]:
        """The devices of now. One that fell off the bus is left out, and comes back when it does."""
        count = self._tell(self._nvml.nvmlDeviceGetCount) or 0
        found = (self._device(index) for index in range(count))
        return [device for device in found if device is not None]

    def environment(self, device: str) -> Mapping[str, str]:
        """One device by its id, which is the same after a reboot, a MIG change or in a container."""
        shown = self._uuids.get(device) or device.partition(":")[2]
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": shown}

    def _device(self, index: int) -> Device | None:
        nvml = self._nvml
        handle = self._tell(nvml.nvmlDeviceGetHandleByIndex, index)
        memory = self._tell(nvml.nvmlDeviceGetMemoryInfo, handle) if handle is not None else None
        if memory is None:
            return None
        name, uuid = f"cuda:{index}", _text(self._tell(nvml.nvmlDeviceGetUUID, handle))
        if uuid:
            self._uuids[name] = uuid
        return Device(
            device=name,
            backend="cuda",
            name=_text(self._tell(nvml.nvmlDeviceGetName, handle)) or "NVIDIA",
            uuid=uuid,
            memory_total_bytes=int(memory.total),
            memory_free_bytes=int(memory.free),
            metrics=self._metrics(handle, int(memory.used)),
        )

    def _metrics(self, handle: Any, used_bytes: int) -> DeviceMetrics:
        nvml = self._nvml
        rates = self._tell(nvml.nvmlDeviceGetUtilizationRates, handle)
        temperature = self._tell(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        power_mw = self._tell(nvml.nvmlDeviceGetPowerUsage, handle)
        return DeviceMetrics(
            memory_used_bytes=used_bytes,
            utilization_percent=None if rates is None else float(rates.gpu),
            temperature_c=None if temperature is None else float(temperature),
            power_w=None if power_mw is None else power_mw / 1000,
        )

    def _tell(self, ask: Callable[..., T], *arguments: Any) -> T | None:
        """One figure; `None` where the device does not support it or has just gone."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError as error:
            log.debug("nvml_silent", extra={"event": "nvml_silent", "reason": str(error)})
            return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
