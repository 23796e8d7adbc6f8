"""AMD: the kernel's figures and the program's, ids, numbers, and GPUs that get lost."""

from __future__ import annotations

from typing import Any

from worker.accelerators.amd_smi import AmdSmi
from worker.accelerators.rocm import Rocm

FIRST, SECOND = "0000:03:00.0", "0000:0a:00.0"


def program(host: Any, release: int) -> AmdSmi:
    verbs = ("static", "list", "metric", "process")
    host.program("amd-smi", **{verb: f"amd/{verb}_{release}.json" for verb in verbs})
    return AmdSmi(*(host.tool("amd-smi", verb) for verb in verbs))


def absent(host: Any) -> AmdSmi:
    tool = host.tool("amd-smi")
    return AmdSmi(tool, tool, tool, tool)


def test_amd_smi_6_tells_all_there_is(host: Any) -> None:
    device, idle = Rocm(host.sys, program(host, 6), {}).sample()
    assert (device.name, device.pci, device.driver) == ("AMD Instinct MI300X", "0000:05:00.0", "6.8.5")
    assert (device.memory_total_bytes, device.memory_free_bytes) == (196592 << 20, (196592 - 121344) << 20)
    metrics = device.metrics
    assert (metrics.utilization_percent, metrics.power_w, metrics.temperature_c) == (87, 542, 71)
    assert (metrics.energy_j, metrics.clock_core_mhz, metrics.clock_memory_mhz) == (123456.5, 2100, 1300)
    assert (metrics.throttle, metrics.ecc_corrected_total, metrics.ecc_uncorrected_total) == (("throttled",), 2, 0)
    assert [(one.pid, one.memory_bytes) for one in metrics.processes or ()] == [(4242, 127238406144)]
    assert (idle.metrics.throttle, idle.metrics.processes, idle.metrics.energy_j) == ((), (), None)


def test_amd_smi_7_wraps_its_list_and_warns_first(host: Any) -> None:
    (device,) = Rocm(host.sys, program(host, 7), {}).sample()
    assert (device.name, device.uuid) == ("AMD Radeon RX 7900 XTX", None)
    assert device.metrics.throttle == ("ppt",)
    assert (device.metrics.temperature_c, device.metrics.ecc_corrected_total) == (55, None)


def test_the_kernel_alone_is_enough(host: Any) -> None:
    host.amd_gpu(1, FIRST)
    (device,) = Rocm(host.sys, absent(host), {}).sample()
    assert (device.device, device.name, device.pci) == ("rocm:0", "AMD gfx1100", FIRST)
    assert (device.memory_total_bytes, device.memory_free_bytes) == (24 << 30, 20 << 30)
    metrics = device.metrics
    assert (metrics.utilization_percent, metrics.temperature_c, metrics.power_w) == (87, 55, 88)
    assert (metrics.power_limit_w, metrics.clock_core_mhz, metrics.clock_memory_mhz) == (327, 1500, 1249)


def test_the_program_names_what_the_kernel_measures(host: Any) -> None:
    host.amd_gpu(1, FIRST, unique_id=0xAB)
    (device,) = Rocm(host.sys, program(host, 7), {}).sample()
    assert (device.name, device.uuid) == ("AMD Radeon RX 7900 XTX", "GPU-00000000000000ab")
    assert device.metrics.utilization_percent == 87
    assert device.metrics.throttle == ("ppt",)
    host.write(f"bus/pci/devices/{FIRST}/gpu_busy_percent", 3)
    assert Rocm(host.sys, absent(host), {}).sample()[0].metrics.utilization_percent == 3


def test_a_gpu_that_falls_off_the_bus_goes_alone(host: Any) -> None:
    host.amd_gpu(1, FIRST, unique_id=1)
    host.amd_gpu(2, SECOND, unique_id=2)
    rocm = Rocm(host.sys, absent(host), {})
    assert rocm.discover()
    host.lose(FIRST)
    assert [device.device for device in rocm.sample()] == ["rocm:1"]
    assert rocm.environment(["rocm:1"]) == {"ROCR_VISIBLE_DEVICES": "GPU-0000000000000002", "HIP_VISIBLE_DEVICES": "0"}


def test_files_that_hold_nonsense_are_figures_left_out(host: Any) -> None:
    host.amd_gpu(1, FIRST)
    for name in ("gpu_busy_percent", "hwmon/hwmon3/temp1_input", "hwmon/hwmon3/power1_average"):
        host.write(f"bus/pci/devices/{FIRST}/{name}", "\x00ÿ² nonsense")
    (device,) = Rocm(host.sys, absent(host), {}).sample()
    assert (device.metrics.utilization_percent, device.metrics.power_w) == (None, None)
    assert device.metrics.temperature_c == 63
    host.write(f"bus/pci/devices/{FIRST}/mem_info_vram_total", "²²²")
    assert Rocm(host.sys, absent(host), {}).sample() == []
    host.write("class/kfd/kfd/topology/nodes/1/properties", "simd_count\nsimd_count x y\n\xff")
    assert not Rocm(host.sys, absent(host), {}).discover()


def test_gpus_count_in_the_order_of_the_kernels_nodes(host: Any) -> None:
    host.write("class/kfd/kfd/topology/nodes/0/properties", "cpu_cores_count 16\nsimd_count 0")
    host.amd_gpu(10, FIRST, unique_id=10)
    host.amd_gpu(9, SECOND, unique_id=9)
    assert [device.pci for device in Rocm(host.sys, absent(host), {}).sample()] == [SECOND, FIRST]


def test_a_gpu_without_an_id_is_pinned_by_its_number(host: Any) -> None:
    host.amd_gpu(1, FIRST)
    host.amd_gpu(2, SECOND)
    rocm = Rocm(host.sys, absent(host), {})
    rocm.sample()
    assert rocm.environment(["rocm:1"]) == {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}


def test_hip_counts_what_the_runtime_leaves_it(host: Any) -> None:
    host.amd_gpu(1, FIRST, unique_id=1)
    host.amd_gpu(2, SECOND, unique_id=2)
    given = {"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "0"}
    (device,) = Rocm(host.sys, absent(host), given).sample()
    assert (device.device, device.uuid) == ("rocm:0", "GPU-0000000000000002")


def test_an_engines_memory_is_found_by_its_pid_in_bytes(host: Any) -> None:
    device, _ = Rocm(host.sys, program(host, 6), {}).sample()
    assert {one.pid: one.memory_bytes >> 20 for one in device.metrics.processes or ()} == {4242: 121344}
