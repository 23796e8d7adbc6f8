"""A stand-in for NVIDIA's library, after the NVML reference: GPUs as tables of what each question gives.

A question that a GPU's table does not hold is NotSupported, as NVML says it. It is a stand-in because the real library
answers nothing without a GPU; where there is one, tests/worker/accelerators/test_real.py asks the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """What the library raises."""


class NVMLError_NotSupported(NVMLError):  # noqa: N801  NVML's own names
    """This GPU does not know."""


class NVMLError_GpuIsLost(NVMLError):  # noqa: N801
    """The GPU fell off the bus."""


class NVMLError_DriverNotLoaded(NVMLError):  # noqa: N801
    """No driver."""


class NVMLError_NotFound(NVMLError):  # noqa: N801
    """No such part."""


def gpu(index: int, **other: Any) -> dict[str, Any]:
    """A GPU that tells everything; `other` changes answers, `None` takes one away."""
    known: dict[str, Any] = {
        "Name": f"NVIDIA H100 80GB HBM3 {index}",
        "UUID": f"GPU-{index}{index}{index}{index}-aaaa",
        "MemoryInfo": SimpleNamespace(total=80 << 30, free=60 << 30, used=20 << 30),
        "PciInfo": SimpleNamespace(busId=b"00000000:1B:00.0"),
        "UtilizationRates": SimpleNamespace(gpu=93, memory=40),
        "Temperature": 61,
        "PowerUsage": 512_330,
        "EnforcedPowerLimit": 700_000,
        "TotalEnergyConsumption": 9_000_500,
        "ClockInfo": lambda kind: {0: 1980, 2: 2619}[kind],
        "CurrentClocksEventReasons": 0x45,
        "TotalEccErrors": lambda kind, counter: {0: 3, 1: 0}[kind],
        "ComputeRunningProcesses": [
            SimpleNamespace(pid=4242, usedGpuMemory=512),
            SimpleNamespace(pid=7, usedGpuMemory=900),
        ],
        "GraphicsRunningProcesses": [SimpleNamespace(pid=4242, usedGpuMemory=None)],
    }
    return {name: answer for name, answer in (known | other).items() if answer is not None}


def part(number: int) -> dict[str, Any]:
    """A MIG instance: it tells its memory and nothing of the card's sensors."""
    return {
        "Name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "UUID": f"MIG-{number}{number}{number}{number}-bbbb",
        "MemoryInfo": SimpleNamespace(total=5 << 30, free=4 << 30, used=1 << 30),
    }


class Library:
    """The module `pynvml`, as far as it is used. Change `gpus`, `loaded` to make things happen."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported
    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_GRAPHICS = 0
    NVML_CLOCK_MEM = 2
    NVML_VOLATILE_ECC = 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1

    def __init__(self, *gpus: dict[str, Any] | None, loaded: bool = True) -> None:
        self.gpus = list(gpus)
        self.loaded = loaded
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self._need_driver()
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._need_driver()

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "550.90.07"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._need_driver()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        found = self.gpus[index]
        if found is None:
            raise NVMLError_GpuIsLost("GPU is lost")
        return found

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], place: int) -> dict[str, Any]:  # noqa: N802
        parts = handle.get("parts", {})
        if place not in parts:
            raise NVMLError_NotFound("Not Found")
        return parts[place]

    def __getattr__(self, question: str) -> Callable[..., Any]:
        if not question.startswith("nvmlDeviceGet"):
            raise AttributeError(question)

        def ask(handle: dict[str, Any], *arguments: Any) -> Any:
            self._need_driver()
            answer = handle.get(question.removeprefix("nvmlDeviceGet"))
            if answer is None:
                raise NVMLError_NotSupported("Not Supported")
            if isinstance(answer, Exception):
                raise answer
            return answer(*arguments) if callable(answer) else answer

        return ask

    def _need_driver(self) -> None:
        if not self.loaded:
            raise NVMLError_DriverNotLoaded("Driver Not Loaded")
