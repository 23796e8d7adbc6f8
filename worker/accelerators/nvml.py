"""NVIDIA's devices through NVML. What a device does not tell is left out; what the driver does not tell is an absence.

`None` in place of the devices means that the driver gives no answer at all: it is missing, was unloaded, or is of
another version than the library. It is tried again at the next sample, so a reloaded driver is found again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, Final, TypeVar

import psutil

from schemas.node import Device, DeviceMetrics, ProcessMemory
from worker.accelerators.figures import text

log = logging.getLogger(__name__)

T = TypeVar("T")
PROCESSES: Final = 32
"""Most processes told of a device."""
THROTTLE: Final = {
    0x2: "applications_clocks",
    0x4: "software_power_cap",
    0x8: "hardware_slowdown",
    0x10: "sync_boost",
    0x20: "software_thermal",
    0x40: "hardware_thermal",
    0x80: "power_brake",
    0x100: "display_clocks",
}
"""NVML's bits. 0x1, idle, is no reason to worry."""
MIG_EMPTY: Final = "MIG is on and has no instance: make one with `nvidia-smi mig -cgi`, or turn MIG off"


class Nvml:
    """The driver's library, `pynvml` or something like it."""

    def __init__(self, library: Any) -> None:
        self._nvml = library
        self._open = False
        self._silent = ""
        self._lock = Lock()

    def devices(self) -> list[Device] | None:
        """The devices of now; one that fell off the bus is not among them. `None`: no driver."""
        with self._lock:
            return self._devices()

    def _devices(self) -> list[Device] | None:
        try:
            if not self._open:
                self._nvml.nvmlInit()
                self._open = True
            count = int(self._nvml.nvmlDeviceGetCount())
        except self._nvml.NVMLError as error:
            self._lost(error)
            return None
        self._silent = ""
        driver = text(self._tell(self._nvml.nvmlSystemGetDriverVersion))
        return [device for index in range(count) for device in self._card(index, driver)]

    def _lost(self, error: Exception) -> None:
        """After this the library must be opened anew."""
        if self._open:
            self._open = False
            self._tell(self._nvml.nvmlShutdown)
        if str(error) != self._silent:
            self._silent = str(error)
            log.info("nvml_absent", extra={"event": "nvml_absent", "reason": self._silent})

    def _card(self, index: int, driver: str | None) -> Iterator[Device]:
        handle = self._tell(self._nvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            return
        device = self._device(handle, f"cuda:{index}", driver)
        if not self._is_split(handle):
            yield from [device] if device else []
            return
        parts = list(self._instances(handle, index, driver))
        yield from parts
        if device and not parts:
            yield device.model_copy(update={"memory_free_bytes": 0, "reason": MIG_EMPTY})

    def _is_split(self, handle: Any) -> bool:
        """MIG is on: CUDA sees the instances and not the card."""
        mode = self._tell(self._nvml.nvmlDeviceGetMigMode, handle)
        return bool(mode) and mode[0] == 1

    def _instances(self, handle: Any, index: int, driver: str | None) -> Iterator[Device]:
        nvml = self._nvml
        places = self._tell(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0
        number = 0
        for place in range(int(places)):
            part = self._tell(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
            if part is not None and (device := self._device(part, f"cuda:{index}.{number}", driver)):
                yield device.model_copy(update={"parent": f"cuda:{index}"})
                number += 1

    def _device(self, handle: Any, name: str, driver: str | None) -> Device | None:
        nvml = self._nvml
        memory = self._memory(handle)
        if memory is None:
            return None
        total, free, unified = memory
        pci = self._tell(nvml.nvmlDeviceGetPciInfo, handle)
        return Device(
            device=name,
            backend="cuda",
            name=text(self._tell(nvml.nvmlDeviceGetName, handle)) or "NVIDIA",
            uuid=text(self._tell(nvml.nvmlDeviceGetUUID, handle)),
            memory_total_bytes=total,
            memory_free_bytes=free,
            metrics=self._metrics(handle, total - free),
            pci=short_pci(text(pci.busId)) if pci is not None else None,
            driver=driver,
            unified_memory=unified,
        )

    def _memory(self, handle: Any) -> tuple[int, int, bool] | None:
        """Total, free, and whether it is the host's: a GPU with none of its own (Grace, Jetson) does not support the
        question. `None` for a GPU that is lost."""
        nvml = self._nvml
        try:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError_NotSupported:
            host = psutil.virtual_memory()
            return int(host.total), int(host.available), True
        except nvml.NVMLError as error:
            log.debug("nvml_silent", extra={"event": "nvml_silent", "reason": str(error)})
            return None
        return int(memory.total), int(memory.free), False

    def _metrics(self, handle: Any, used_bytes: int) -> DeviceMetrics:
        nvml = self._nvml
        rates = self._tell(nvml.nvmlDeviceGetUtilizationRates, handle)
        ecc = nvml.NVML_VOLATILE_ECC
        return DeviceMetrics(
            memory_used_bytes=used_bytes,
            utilization_percent=None if rates is None else float(rates.gpu),
            temperature_c=self._tell(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=_thousandth(self._tell(nvml.nvmlDeviceGetPowerUsage, handle)),
            power_limit_w=_thousandth(self._tell(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)),
            energy_j=_thousandth(self._tell(nvml.nvmlDeviceGetTotalEnergyConsumption, handle)),
            clock_core_mhz=self._tell(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_GRAPHICS),
            clock_memory_mhz=self._tell(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            throttle=self._throttle(handle),
            ecc_corrected_total=self._tell(
                nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, ecc
            ),
            ecc_uncorrected_total=self._tell(
                nvml.nvmlDeviceGetTotalEccErrors, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, ecc
            ),
            processes=self._processes(handle),
        )

    def _throttle(self, handle: Any) -> tuple[str, ...] | None:
        """Drivers before 535 know the question by its former name only."""
        bits = self._tell(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if bits is None:
            bits = self._tell(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return None if bits is None else throttle_names(int(bits))

    def _processes(self, handle: Any) -> tuple[ProcessMemory, ...] | None:
        nvml = self._nvml
        questions = (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses)
        answers = [answer for ask in questions if (answer := self._tell(ask, handle)) is not None]
        if not answers:
            return None
        return held((int(one.pid), one.usedGpuMemory) for answer in answers for one in answer)

    def _tell(self, ask: Callable[..., T], *arguments: Any) -> T | None:
        """One figure; `None` where the device does not support it, has just gone, or talks nonsense."""
        try:
            return ask(*arguments)
        except (self._nvml.NVMLError, UnicodeDecodeError) as error:
            log.debug("nvml_silent", extra={"event": "nvml_silent", "reason": str(error)})
            return None


def throttle_names(bits: int) -> tuple[str, ...]:
    """NVML's bits in words."""
    return tuple(name for bit, name in THROTTLE.items() if bits & bit)


def held(pairs: Iterator[tuple[int, int | None]]) -> tuple[ProcessMemory, ...]:
    """Memory by process, each once, the largest first."""
    largest: dict[int, int] = {}
    for pid, memory_bytes in pairs:
        largest[pid] = max(largest.get(pid, 0), int(memory_bytes or 0))
    ordered = sorted(largest.items(), key=lambda pair: (-pair[1], pair[0]))[:PROCESSES]
    return tuple(ProcessMemory(pid=pid, memory_bytes=memory_bytes) for pid, memory_bytes in ordered)


def short_pci(address: str | None) -> str | None:
    """`00000000:01:00.0` as the kernel writes it: `0000:01:00.0`."""
    if address is None:
        return None
    domain, colon, rest = address.lower().partition(":")
    return f"{domain[-4:].rjust(4, '0')}:{rest}" if colon and rest.count(":") == 1 else address.lower()


def _thousandth(value: float | None) -> float | None:
    return None if value is None else value / 1000
