"""NVIDIA: figures, MIG, drivers that come and go, GPUs that get lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from worker.accelerators.cuda import Cuda
from worker.accelerators.nvidia_smi import MIG_UNSEEN, NvidiaSmi
from worker.accelerators.nvml import MIG_EMPTY, PROCESSES


@pytest.fixture
def no_smi(host: Any) -> NvidiaSmi:
    absent = host.tool("nvidia-smi")
    return NvidiaSmi(absent, absent, absent)


def mig(nvml: Any, index: int, **parts: Any) -> dict[str, Any]:
    return nvml.gpu(index, MigMode=[1, 1], MaxMigDeviceCount=7, parts={int(at[1:]): one for at, one in parts.items()})


def test_nvml_tells_all_there_is(nvml: Any, no_smi: NvidiaSmi) -> None:
    (device,) = Cuda(nvml.Library(nvml.gpu(0)), no_smi, {}).sample()
    assert (device.uuid, device.pci, device.driver) == ("GPU-0000-aaaa", "0000:1b:00.0", "550.90.07")
    metrics = device.metrics
    assert (metrics.utilization_percent, metrics.temperature_c, metrics.power_w) == (93, 61, 512.33)
    assert (metrics.power_limit_w, metrics.energy_j) == (700, 9000.5)
    assert (metrics.clock_core_mhz, metrics.clock_memory_mhz) == (1980, 2619)
    assert metrics.throttle == ("software_power_cap", "hardware_thermal")
    assert (metrics.ecc_corrected_total, metrics.ecc_uncorrected_total) == (3, 0)
    assert [(one.pid, one.memory_bytes) for one in metrics.processes or ()] == [(7, 900), (4242, 512)]


@pytest.mark.parametrize(
    "question",
    ["UtilizationRates", "Temperature", "PowerUsage", "EnforcedPowerLimit", "TotalEnergyConsumption", "ClockInfo",
     "TotalEccErrors", "PciInfo", "UUID", "Name"],
)  # fmt: skip
def test_a_question_that_is_not_supported_costs_its_own_figure_only(
    nvml: Any, no_smi: NvidiaSmi, question: str
) -> None:
    whole, lacking = (Cuda(nvml.Library(nvml.gpu(0, **other)), no_smi, {}).sample() for other in ({}, {question: None}))
    told = [len(each.metrics.model_dump(exclude_none=True)) for each in (*whole, *lacking)]
    assert told[0] - told[1] in (0, 1, 2)
    assert lacking[0].memory_free_bytes == 60 << 30


def test_an_older_driver_is_asked_for_throttling_by_its_former_name(nvml: Any, no_smi: NvidiaSmi) -> None:
    old = nvml.gpu(0, CurrentClocksEventReasons=None, CurrentClocksThrottleReasons=0x1)
    (device,) = Cuda(nvml.Library(old), no_smi, {}).sample()
    assert device.metrics.throttle == ()


def test_processes_told_of_are_bounded(nvml: Any, no_smi: NvidiaSmi) -> None:
    many = [SimpleNamespace(pid=pid, usedGpuMemory=pid) for pid in range(1000)]
    (device,) = Cuda(nvml.Library(nvml.gpu(0, ComputeRunningProcesses=many)), no_smi, {}).sample()
    assert len(device.metrics.processes or ()) == PROCESSES


def test_text_that_is_none_is_left_out(nvml: Any, no_smi: NvidiaSmi) -> None:
    def broken() -> str:
        return b"\xff\xfe".decode()

    (device,) = Cuda(nvml.Library(nvml.gpu(0, Name=broken, UUID="N/A")), no_smi, {}).sample()
    assert (device.name, device.uuid) == ("NVIDIA", None)


def test_a_gpu_without_memory_of_its_own_has_the_hosts(nvml: Any, no_smi: NvidiaSmi, host: Any) -> None:
    (by_nvml,) = Cuda(nvml.Library(nvml.gpu(0, MemoryInfo=None)), no_smi, {}).sample()
    host.program("nvidia-smi", any="nvidia/full_580_unified.csv")
    smi = host.tool("nvidia-smi")
    (by_smi,) = Cuda(nvml.Library(loaded=False), NvidiaSmi(smi, smi, smi), {}).sample()
    for device in (by_nvml, by_smi):
        assert device.unified_memory
        assert device.memory_total_bytes == psutil.virtual_memory().total


def test_a_gpu_that_falls_off_the_bus_goes_alone_and_the_others_keep_their_names(nvml: Any, no_smi: NvidiaSmi) -> None:
    library = nvml.Library(nvml.gpu(0), nvml.gpu(1), nvml.gpu(2))
    cuda = Cuda(library, no_smi, {})
    assert cuda.discover()
    library.gpus[1] = None
    assert [device.device for device in cuda.sample()] == ["cuda:0", "cuda:2"]
    library.gpus[1] = nvml.gpu(1, MemoryInfo=nvml.NVMLError_GpuIsLost("GPU is lost"))
    assert [device.device for device in cuda.sample()] == ["cuda:0", "cuda:2"]
    assert cuda.environment(["cuda:1"])["CUDA_VISIBLE_DEVICES"] == "GPU-1111-aaaa"


def test_a_driver_that_vanishes_and_comes_back_is_opened_anew(nvml: Any, no_smi: NvidiaSmi) -> None:
    library = nvml.Library(nvml.gpu(0))
    cuda = Cuda(library, no_smi, {})
    assert cuda.discover()
    library.loaded = False
    assert cuda.sample() == []
    assert cuda.sample() == []
    library.loaded = True
    assert len(cuda.sample()) == 1
    assert library.opened == 2


def test_where_nvml_is_of_another_version_nvidia_smi_is_asked(nvml: Any, host: Any) -> None:
    host.program("nvidia-smi", **{"query-gpu": "nvidia/full_550.csv", "compute-apps": "nvidia/apps.csv"})
    gpus, apps = host.tool("nvidia-smi", "--query-gpu=x"), host.tool("nvidia-smi", "--query-compute-apps=x")
    first, second = Cuda(nvml.Library(loaded=False), NvidiaSmi(gpus, gpus, apps), {}).sample()
    assert (first.name, first.pci, first.driver) == ("NVIDIA H100 80GB HBM3", "0000:1b:00.0", "550.90.07")
    assert (first.memory_total_bytes, first.memory_free_bytes) == (81559 << 20, 60561 << 20)
    assert (first.metrics.power_w, first.metrics.clock_core_mhz) == (512.33, 1980)
    assert first.metrics.throttle == ("software_power_cap", "hardware_thermal")
    assert [(one.pid, one.memory_bytes >> 20) for one in first.metrics.processes or ()] == [(4243, 19968), (4242, 512)]
    assert [(one.pid, one.memory_bytes) for one in second.metrics.processes or ()] == [(4244, 0)]


def test_a_driver_that_does_not_know_a_field_is_asked_the_shorter_question(nvml: Any, host: Any) -> None:
    host.program("nvidia-smi", basic="nvidia/basic_390.csv")
    full, basic = host.tool("nvidia-smi", "full"), host.tool("nvidia-smi", "basic")
    (device,) = Cuda(nvml.Library(loaded=False), NvidiaSmi(full, basic, basic), {}).sample()
    assert (device.name, device.metrics.utilization_percent, device.metrics.power_w) == ("GeForce GT 710", None, None)
    assert (device.metrics.temperature_c, device.metrics.throttle) == (44, None)


def test_the_real_questions_are_those_of_the_program(host: Any) -> None:
    host.program("nvidia-smi", any="nvidia/full_550.csv")
    assert len(NvidiaSmi().devices() or []) == 2
    gpus, apps = host.asked()
    assert gpus.startswith("--query-gpu=index,uuid,name,")
    assert gpus.endswith(" --format=csv,nounits")
    assert apps == "--query-compute-apps=gpu_uuid,pid,used_gpu_memory --format=csv,nounits"


def test_mig_instances_are_devices_and_their_gpu_is_none(nvml: Any, no_smi: NvidiaSmi) -> None:
    cuda = Cuda(nvml.Library(nvml.gpu(0), mig(nvml, 1, p0=nvml.part(1), p5=nvml.part(2))), no_smi, {})
    whole, first, second = cuda.sample()
    assert [device.device for device in (whole, first, second)] == ["cuda:0", "cuda:1.0", "cuda:1.1"]
    assert (first.uuid, first.parent, first.memory_total_bytes) == ("MIG-1111-bbbb", "cuda:1", 5 << 30)
    assert first.metrics.temperature_c is None
    assert cuda.environment(["cuda:1.1"])["CUDA_VISIBLE_DEVICES"] == "MIG-2222-bbbb"


def test_cuda_takes_one_mig_instance_a_process(nvml: Any, no_smi: NvidiaSmi) -> None:
    cuda = Cuda(nvml.Library(mig(nvml, 0, p0=nvml.part(1), p1=nvml.part(2))), no_smi, {})
    cuda.sample()
    assert cuda.environment(["cuda:0.0", "cuda:0.1"])["CUDA_VISIBLE_DEVICES"] == "MIG-1111-bbbb"


def test_a_gpu_with_mig_and_no_instance_says_what_to_do(nvml: Any, no_smi: NvidiaSmi, host: Any) -> None:
    (device,) = Cuda(nvml.Library(mig(nvml, 0)), no_smi, {}).sample()
    assert (device.device, device.memory_free_bytes, device.reason) == ("cuda:0", 0, MIG_EMPTY)
    host.program("nvidia-smi", any="nvidia/full_535_mig.csv")
    smi = host.tool("nvidia-smi")
    (unseen,) = Cuda(nvml.Library(loaded=False), NvidiaSmi(smi, smi, smi), {}).sample()
    assert (unseen.memory_free_bytes, unseen.reason) == (0, MIG_UNSEEN)


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("1", {"cuda:0": "GPU-1111-aaaa"}),
        ("2,0", {"cuda:0": "GPU-2222-aaaa", "cuda:1": "GPU-0000-aaaa"}),
        ("GPU-2222", {"cuda:0": "GPU-2222-aaaa"}),
        ("0,7,1", {"cuda:0": "GPU-0000-aaaa"}),
        ("0,-1,1", {"cuda:0": "GPU-0000-aaaa"}),
        ("-1", {}),
        ("", {}),
    ],
)
def test_a_worker_that_may_use_some_gpus_offers_those_under_the_engines_names(
    nvml: Any, no_smi: NvidiaSmi, given: str, seen: dict[str, str]
) -> None:
    library = nvml.Library(nvml.gpu(0), nvml.gpu(1), nvml.gpu(2))
    cuda = Cuda(library, no_smi, {"CUDA_VISIBLE_DEVICES": given})
    assert {device.device: device.uuid for device in cuda.sample()} == seen
    for name, uuid in seen.items():
        assert cuda.environment([name])["CUDA_VISIBLE_DEVICES"] == uuid
