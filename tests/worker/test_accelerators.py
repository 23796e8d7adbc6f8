"""Devices: the processors within a cgroup, and NVIDIA's through a driver that does not tell everything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker.accelerators import discover, environment, sample
from worker.accelerators.cpu import Cpu
from worker.accelerators.cuda import Cuda


class NvmlError(Exception):
    """What the driver raises."""


class Driver:
    """An NVML with one device that knows no power and no temperature. Devices of that kind exist; none is at hand."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, count: int = 1, *, loaded: bool = True) -> None:
        self.count = count
        self.loaded = loaded

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.loaded:
            raise NvmlError("driver not loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        if handle == 1:
            raise NvmlError("fell off the bus")
        return SimpleNamespace(total=80, free=60, used=20)

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"NVIDIA X"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=7)

    def silent(self, *_: Any) -> Any:
        raise NvmlError("not supported")

    nvmlDeviceGetTemperature = nvmlDeviceGetPowerUsage = silent  # noqa: N815


def test_every_host_has_its_processors() -> None:
    found = sample(discover())
    cpu = found[-1]
    assert (cpu.device, cpu.backend) == ("cpu:0", "cpu")
    assert 0 < cpu.memory_free_bytes <= cpu.memory_total_bytes


def test_a_cgroups_limit_counts_and_page_cache_does_not(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 200000\nactive_file 300000\ninactive_file 200000\n")
    (device,) = Cpu(cgroup=tmp_path).sample()
    assert (device.memory_total_bytes, device.memory_free_bytes) == (1_000_000, 800_000)


def test_a_cgroup_without_a_limit_is_the_host(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (limited,), (host,) = Cpu(cgroup=tmp_path).sample(), Cpu(cgroup=tmp_path / "none").sample()
    assert limited.memory_total_bytes == host.memory_total_bytes


def test_a_host_without_a_driver_has_no_nvidia() -> None:
    assert not Cuda(Driver(loaded=False)).discover()
    assert not Cuda(Driver(count=0)).discover()


def test_what_a_device_does_not_tell_is_left_out_and_a_lost_one_too() -> None:
    cuda = Cuda(Driver(count=2))
    assert cuda.discover()
    (device,) = cuda.sample()
    assert (device.device, device.name, device.uuid) == ("cuda:0", "NVIDIA X", "GPU-0")
    assert (device.memory_total_bytes, device.memory_free_bytes) == (80, 60)
    assert device.metrics.utilization_percent == 7
    assert (device.metrics.temperature_c, device.metrics.power_w) == (None, None)


def test_an_engine_sees_its_own_devices_by_their_ids() -> None:
    cuda = Cuda(Driver())
    cuda.sample()
    assert environment([cuda], ["cuda:0", "cuda:3"]) == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "GPU-0,3",
    }
    assert environment([cuda, Cpu()], ["cpu:0"]) == {}
