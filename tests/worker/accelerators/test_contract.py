"""What every accelerator keeps, whatever its driver and its tools do. One suite for all."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from schemas.node import Device
from worker.accelerators import Accelerator, environment
from worker.accelerators.amd_smi import AmdSmi
from worker.accelerators.cpu import Cpu
from worker.accelerators.cuda import Cuda
from worker.accelerators.listed import EngineDevices
from worker.accelerators.metal import Metal
from worker.accelerators.nvidia_smi import NvidiaSmi
from worker.accelerators.rocm import Rocm
from worker.accelerators.sycl import Sycl
from worker.accelerators.vulkan import Vulkan


def cuda_nvml(host: Any, nvml: Any) -> Accelerator:
    return Cuda(nvml.Library(nvml.gpu(0), nvml.gpu(1)), no_smi(host), {})


def cuda_of(file: str) -> Callable[[Any, Any], Accelerator]:
    def make(host: Any, nvml: Any) -> Accelerator:
        host.program("nvidia-smi", **{"query-gpu": f"nvidia/{file}", "compute-apps": "nvidia/apps.csv"})
        gpus, apps = host.tool("nvidia-smi", "--query-gpu=x"), host.tool("nvidia-smi", "--query-compute-apps=x")
        return Cuda(nvml.Library(loaded=False), NvidiaSmi(gpus, gpus, apps), {})

    return make


def no_smi(host: Any) -> NvidiaSmi:
    absent = host.tool("nvidia-smi")
    return NvidiaSmi(absent, absent, absent)


def amd_smi(host: Any, release: int) -> AmdSmi:
    verbs = ("static", "list", "metric", "process")
    host.program("amd-smi", **{verb: f"amd/{verb}_{release}.json" for verb in verbs})
    return AmdSmi(*(host.tool("amd-smi", verb, "--json") for verb in verbs))


def rocm_of(release: int) -> Callable[[Any, Any], Accelerator]:
    return lambda host, nvml: Rocm(host.sys, amd_smi(host, release), {})


def rocm_kernel(host: Any, nvml: Any) -> Accelerator:
    host.write("class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 16\nsimd_count 0")
    host.amd_gpu(1, "0000:03:00.0", unique_id=0x1B2C3D4E5F60718)
    host.amd_gpu(2, "0000:0a:00.0", unique_id=0xA1B2C3D4E5F60718)
    absent = host.tool("amd-smi")
    return Rocm(host.sys, AmdSmi(absent, absent, absent, absent), {})


def metal_profiler(file: str) -> Callable[[Any, Any], Accelerator]:
    def make(host: Any, nvml: Any) -> Accelerator:
        host.program("system_profiler", any=f"apple/{file}")
        profiler = host.tool("system_profiler", "SPDisplaysDataType", "-json")
        return Metal(None, profiler, host.tool("sysctl"), "darwin")

    return make


def metal_engine(file: str) -> Callable[[Any, Any], Accelerator]:
    return lambda host, nvml: Metal(host.listing(file), host.tool("absent"), host.tool("absent"), "darwin")


@dataclass(frozen=True)
class Case:
    make: Callable[[Any, Any], Accelerator]
    names: tuple[str, ...]
    chosen: dict[str, str]
    """What pins an engine to all of them."""
    none: dict[str, str]
    """What hides all of them."""
    tools: bool = True


PCI = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
NO_CUDA, NO_HIP = PCI | {"CUDA_VISIBLE_DEVICES": "-1"}, {"HIP_VISIBLE_DEVICES": "-1"}
ONE = "GPU-11111111-aaaa-bbbb-cccc-000000000000"
TWO = "GPU-22222222-aaaa-bbbb-cccc-000000000000"
CASES = {
    "cuda by NVML": Case(
        cuda_nvml,
        ("cuda:0", "cuda:1"),
        PCI | {"CUDA_VISIBLE_DEVICES": "GPU-0000-aaaa,GPU-1111-aaaa"},
        NO_CUDA,
        tools=False,
    ),
    "cuda by nvidia-smi 550": Case(
        cuda_of("full_550.csv"), ("cuda:0", "cuda:1"), PCI | {"CUDA_VISIBLE_DEVICES": f"{ONE},{TWO}"}, NO_CUDA
    ),
    "cuda by nvidia-smi 580": Case(
        cuda_of("full_580_unified.csv"), ("cuda:0",), PCI | {"CUDA_VISIBLE_DEVICES": ONE.replace("1", "3")}, NO_CUDA
    ),
    "cuda by nvidia-smi 535, one lost": Case(
        cuda_of("full_535_lost.csv"), ("cuda:0",), PCI | {"CUDA_VISIBLE_DEVICES": ONE}, NO_CUDA
    ),
    "cuda by nvidia-smi 390": Case(
        cuda_of("basic_390.csv"), ("cuda:0",), PCI | {"CUDA_VISIBLE_DEVICES": ONE.replace("1", "5")}, NO_CUDA
    ),
    "rocm by amd-smi 6": Case(
        rocm_of(6),
        ("rocm:0", "rocm:1"),
        {"ROCR_VISIBLE_DEVICES": "GPU-a1b2c3d4e5f60718,GPU-b1b2c3d4e5f60718", "HIP_VISIBLE_DEVICES": "0,1"},
        NO_HIP,
    ),
    "rocm by amd-smi 7": Case(
        rocm_of(7), ("rocm:0",), {"ROCR_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0"}, NO_HIP
    ),
    "rocm by the kernel": Case(
        rocm_kernel,
        ("rocm:0", "rocm:1"),
        {"ROCR_VISIBLE_DEVICES": "GPU-01b2c3d4e5f60718,GPU-a1b2c3d4e5f60718", "HIP_VISIBLE_DEVICES": "0,1"},
        NO_HIP,
        tools=False,
    ),
    "metal by system_profiler, M3": Case(metal_profiler("m3_pro.json"), ("metal:0",), {}, {}),
    "metal by system_profiler, M1": Case(metal_profiler("m1.json"), ("metal:0",), {}, {}),
    "metal by system_profiler, Intel Mac": Case(metal_profiler("vega.json"), ("metal:0",), {}, {}),
    "metal by the engine": Case(metal_engine("metal.txt"), ("metal:0",), {}, {}),
    "metal by the engine, newer": Case(metal_engine("metal_mtl.txt"), ("metal:0",), {}, {}),
    "vulkan": Case(
        lambda host, nvml: Vulkan(host.listing("vulkan.txt"), root=host.sys, environ={}),
        ("vulkan:0",),
        {"GGML_VK_VISIBLE_DEVICES": "0"},
        {"GGML_VK_VISIBLE_DEVICES": ""},
    ),
    "sycl": Case(
        lambda host, nvml: Sycl(host.listing("sycl_vulkan.txt"), root=host.sys, environ={}),
        ("sycl:0", "sycl:1"),
        {"ONEAPI_DEVICE_SELECTOR": "level_zero:0,1"},
        {},
    ),
    "a backend that only the engine knows": Case(
        lambda host, nvml: EngineDevices("rocm", host.listing("rocm_vulkan.txt"), root=host.sys), ("rocm:0",), {}, {}
    ),
    "cpu": Case(lambda host, nvml: Cpu(host.sys, host.sys / "cpuinfo"), ("cpu:0",), {}, {}, tools=False),
}
WITH_TOOLS = [name for name, case in CASES.items() if case.tools]
ONCE = "a backend that only the engine knows"
"""Listing its devices costs memory on them, so the list is made once and serves for good."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def sound(device: Device, backend: str) -> None:
    """What holds for any device that is told of."""
    assert device.backend == backend
    assert device.device.startswith(f"{backend}:")
    assert device.name
    assert device.name.isprintable()
    assert 0 <= device.memory_free_bytes <= device.memory_total_bytes
    assert device.memory_total_bytes > 0
    metrics = device.metrics
    assert metrics.utilization_percent is None or 0 <= metrics.utilization_percent <= 100
    assert metrics.memory_used_bytes is None or metrics.memory_used_bytes >= 0
    assert Device.model_validate_json(device.model_dump_json()) == device


def test_it_finds_its_devices_and_tells_sound_figures(case: Case, host: Any, nvml: Any) -> None:
    accelerator = case.make(host, nvml)
    assert accelerator.discover()
    devices = accelerator.sample()
    assert tuple(device.device for device in devices) == case.names
    for device in devices:
        sound(device, accelerator.backend)


def test_an_engine_is_pinned_to_some_and_kept_from_all(case: Case, host: Any, nvml: Any) -> None:
    accelerator = case.make(host, nvml)
    accelerator.discover()
    assert environment([accelerator], case.names) == case.chosen
    assert environment([accelerator], []) == case.none


def test_one_of_several_is_the_same_one_alone(case: Case, host: Any, nvml: Any) -> None:
    accelerator = case.make(host, nvml)
    accelerator.discover()
    alone = dict(accelerator.environment(case.names[-1:]))
    for name, value in case.chosen.items():
        whole = value.partition(":")[2] if ":" in value else value
        last = alone[name].partition(":")[2] if ":" in value else alone[name]
        assert last == ("0" if name == "HIP_VISIBLE_DEVICES" else whole.split(",")[-1])


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize("mode", ["fail", "garbage"])
def test_a_tool_that_fails_or_prints_garbage_gives_no_devices(name: str, mode: str, host: Any, nvml: Any) -> None:
    accelerator = CASES[name].make(host, nvml)
    host.mode(mode)
    assert not accelerator.discover()
    assert accelerator.sample() == []


@pytest.mark.parametrize("name", [name for name in WITH_TOOLS if name != ONCE])
def test_devices_go_when_their_tool_fails_between_two_samples_and_come_back(name: str, host: Any, nvml: Any) -> None:
    accelerator = CASES[name].make(host, nvml)
    assert accelerator.discover()
    host.mode("fail")
    assert accelerator.sample() == []
    host.mode("ok")
    assert tuple(device.device for device in accelerator.sample()) == CASES[name].names


HANGING = ["cuda by nvidia-smi 550", "rocm by amd-smi 6", "metal by system_profiler, M3", "metal by the engine"]


@pytest.mark.parametrize("name", HANGING)
@pytest.mark.parametrize("mode", ["hang", "huge"])
def test_a_tool_that_hangs_or_prints_for_ever_is_ended_in_time(name: str, mode: str, host: Any, nvml: Any) -> None:
    accelerator = CASES[name].make(host, nvml)
    host.mode(mode)
    started = time.monotonic()
    assert accelerator.sample() == []
    assert time.monotonic() - started < 10


def test_nothing_is_found_where_nothing_is(host: Any, nvml: Any) -> None:
    absent = host.tool("absent")
    empty = host.listing("empty.txt")
    assert not Cuda(nvml.Library(loaded=False), no_smi(host), {}).discover()
    assert not Cuda(nvml.Library(), no_smi(host), {}).discover()
    assert not Rocm(host.sys, AmdSmi(absent, absent, absent, absent), {}).discover()
    assert not Metal(None, absent, absent, "darwin").discover()
    assert not Metal(host.listing("metal.txt"), absent, absent, "linux").discover()
    assert not Vulkan(empty, root=host.sys, environ={}).discover()
    assert not Sycl(host.listing("none.txt"), root=host.sys, environ={}).discover()


def test_the_recordings_say_where_they_come_from() -> None:
    folder = Path(__file__).parents[2] / "fakes/recorded"
    said = (folder / "README.md").read_text()
    for file in folder.glob("*/*"):
        name = f"{file.parent.name}/{file.name}"
        assert name in said or f"{file.parent.name}/*{file.suffix}" in said, name
