"""What only the engine's list shows: each card once, by the best backend, under the numbers that its runtime takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from worker.accelerators.cards import vendor
from worker.accelerators.cuda import Cuda
from worker.accelerators.listed import EngineDevices
from worker.accelerators.listing import KEPT_S, EngineList, Listed, entries
from worker.accelerators.nvidia_smi import NvidiaSmi
from worker.accelerators.sycl import Sycl
from worker.accelerators.vulkan import Vulkan

RECORDED = Path(__file__).parents[2] / "fakes/recorded/engine"
ALL = ("cuda", "rocm", "metal", "sycl", "vulkan")


class Engine:
    """An engine whose GPUs have other numbers in their runtime than in its list. Counts how often it is asked."""

    def __init__(self, variable: str, listed: list[str], runtime: list[str]) -> None:
        self.variable = variable
        self.listed = listed
        self.runtime = runtime
        self.asked: list[Mapping[str, str]] = []

    def source(self, environment: Mapping[str, str], every_s: float) -> Any:
        engine = self

        class Answer:
            def read(self) -> str | None:
                engine.asked.append(environment)
                return engine.answer(environment)

        return Answer()

    def answer(self, environment: Mapping[str, str]) -> str | None:
        chosen = environment.get(self.variable)
        if chosen is None:
            return self.page(self.listed)
        number = int(chosen.rpartition(":")[2])
        return self.page([self.runtime[number]]) if number < len(self.runtime) else None

    def page(self, cards: list[str]) -> str:
        name = "SYCL" if self.variable.startswith("ONEAPI") else "Vulkan"
        return "Available devices:\n" + "".join(f"  {name}{at}: {card}\n" for at, card in enumerate(cards))


BIG, SMALL, INSIDE = (
    "AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24000 MiB free)",
    "Intel(R) Arc(tm) A750 Graphics (DG2) (8128 MiB, 8000 MiB free)",
    "Intel(R) UHD Graphics 770 (ADL-S GT1) (31000 MiB, 20000 MiB free)",
)


def names(accelerator: EngineDevices) -> list[str]:
    return [device.device for device in accelerator.sample()]


@pytest.mark.parametrize(
    ("file", "found"),
    [
        ("cuda_vulkan.txt", ["cuda:0", "cuda:1", "vulkan:0", "vulkan:1", "vulkan:2"]),
        ("metal.txt", ["metal:0"]),
        ("metal_mtl.txt", ["metal:0"]),
        ("rocm_vulkan.txt", ["rocm:0", "vulkan:0"]),
        ("none.txt", []),
        ("empty.txt", []),
    ],
)
def test_an_engines_list_is_read(file: str, found: list[str]) -> None:
    assert [entry.device for entry in entries((RECORDED / file).read_text())] == found


@pytest.mark.parametrize(
    "text",
    ["", "Available devices:", "  Vulkan0: no head (1 MiB, 1 MiB free)", "Available devices:\n  : (1 MiB)\n\xff"],
)
def test_what_is_no_list_lists_nothing(text: str) -> None:
    assert entries(text) == ()


def test_brackets_and_colons_in_a_name_are_the_names() -> None:
    (entry,) = entries("Available devices:\n  Vulkan3: A: (B) (C) GPU (10 MiB, 5 MiB free)\r\n")
    assert entry == Listed("vulkan", 3, "A: (B) (C) GPU", 10 << 20, 5 << 20)


@pytest.mark.parametrize(
    ("file", "backend", "left"),
    [
        ("cuda_vulkan.txt", "vulkan", ["vulkan:2"]),
        ("cuda_vulkan.txt", "cuda", ["cuda:0", "cuda:1"]),
        ("rocm_vulkan.txt", "vulkan", []),
        ("sycl_vulkan.txt", "vulkan", []),
        ("sycl_vulkan.txt", "sycl", ["sycl:0", "sycl:1"]),
        ("vulkan.txt", "vulkan", ["vulkan:0"]),
    ],
)
def test_a_card_that_two_backends_see_is_offered_once(host: Any, file: str, backend: str, left: list[str]) -> None:
    accelerator = EngineDevices(backend, host.listing(file), rivals=ALL, root=host.sys)
    assert accelerator.discover()
    assert names(accelerator) == left


def test_a_blocked_backend_takes_no_card_from_another(host: Any) -> None:
    accelerator = EngineDevices("vulkan", host.listing("rocm_vulkan.txt"), rivals=("vulkan",), root=host.sys)
    assert names(accelerator) == ["vulkan:0"]


def test_vulkans_own_numbers_are_found_by_asking(host: Any) -> None:
    engine = Engine("GGML_VK_VISIBLE_DEVICES", [BIG, SMALL], [INSIDE, SMALL, BIG])
    vulkan = Vulkan(EngineList(("engine",), engine.source), root=host.sys, environ={})
    assert vulkan.discover()
    assert vulkan.environment(["vulkan:0"]) == {"GGML_VK_VISIBLE_DEVICES": "2"}
    assert vulkan.environment(["vulkan:1", "vulkan:0"]) == {"GGML_VK_VISIBLE_DEVICES": "1,2"}
    assert len(engine.asked) == 4


def test_two_cards_of_one_kind_keep_their_order(host: Any) -> None:
    engine = Engine("GGML_VK_VISIBLE_DEVICES", [BIG, BIG], [INSIDE, BIG, BIG])
    vulkan = Vulkan(EngineList(("engine",), engine.source), root=host.sys, environ={})
    vulkan.discover()
    assert vulkan.environment(["vulkan:1", "vulkan:0"]) == {"GGML_VK_VISIBLE_DEVICES": "2,1"}


def test_a_number_that_is_not_found_is_the_lists_own(host: Any) -> None:
    engine = Engine("GGML_VK_VISIBLE_DEVICES", [BIG, SMALL], [BIG])
    vulkan = Vulkan(EngineList(("engine",), engine.source), root=host.sys, environ={})
    assert vulkan.discover()
    assert vulkan.environment(["vulkan:0", "vulkan:1"]) == {"GGML_VK_VISIBLE_DEVICES": "0,1"}


def test_a_persons_choice_of_vulkan_devices_stands(host: Any) -> None:
    engine = Engine("GGML_VK_VISIBLE_DEVICES", [BIG, SMALL], [INSIDE, SMALL, BIG])
    given = {"GGML_VK_VISIBLE_DEVICES": "2,1"}
    vulkan = Vulkan(EngineList(("engine",), engine.source), root=host.sys, environ=given)
    vulkan.discover()
    assert vulkan.environment(["vulkan:1"]) == {"GGML_VK_VISIBLE_DEVICES": "1"}


def test_level_zeros_own_numbers_are_found_by_asking(host: Any) -> None:
    engine = Engine("ONEAPI_DEVICE_SELECTOR", [SMALL, INSIDE], [INSIDE, SMALL])
    sycl = Sycl(EngineList(("engine",), engine.source), root=host.sys, environ={})
    assert sycl.discover()
    assert sycl.environment(["sycl:0"]) == {"ONEAPI_DEVICE_SELECTOR": "level_zero:1"}
    assert sycl.environment(["sycl:0", "sycl:1"]) == {"ONEAPI_DEVICE_SELECTOR": "level_zero:1,0"}


@pytest.mark.parametrize(
    ("given", "pinned"),
    [
        ("level_zero:3", {"ONEAPI_DEVICE_SELECTOR": "level_zero:3"}),
        ("opencl:gpu;level_zero:*", {}),
    ],
)
def test_a_persons_choice_of_sycl_devices_stands(host: Any, given: str, pinned: dict[str, str]) -> None:
    engine = Engine("ONEAPI_DEVICE_SELECTOR", [SMALL], [INSIDE, BIG, BIG, SMALL])
    sycl = Sycl(EngineList(("engine",), engine.source), root=host.sys, environ={"ONEAPI_DEVICE_SELECTOR": given})
    sycl.discover()
    assert sycl.environment(["sycl:0"]) == pinned


def test_figures_come_from_the_vendors_own_tools(host: Any, nvml: Any) -> None:
    absent = host.tool("absent")
    gpu = nvml.gpu(0, Name="NVIDIA GeForce RTX 3060")
    beside = [Cuda(nvml.Library(gpu), NvidiaSmi(absent, absent, absent), {})]
    (device,) = Vulkan(host.listing("vulkan.txt"), beside=beside, root=host.sys, environ={}).sample()
    assert (device.device, device.uuid, device.pci) == ("vulkan:0", "GPU-0000-aaaa", "0000:1b:00.0")
    assert (device.metrics.temperature_c, device.metrics.utilization_percent) == (61, 93)
    assert device.memory_total_bytes == 12288 << 20


def test_an_amd_card_is_measured_by_the_kernel(host: Any) -> None:
    host.amd_gpu(1, "0000:03:00.0")
    vulkan = Vulkan(host.listing("vulkan_amd.txt"), root=host.sys, environ={})
    (device,) = vulkan.sample()
    assert device.memory_free_bytes == 20 << 30
    assert (device.metrics.temperature_c, device.pci) == (55, "0000:03:00.0")


def test_an_intel_card_is_measured_by_the_kernel(host: Any) -> None:
    engine = Engine("GGML_VK_VISIBLE_DEVICES", [SMALL], [SMALL])
    pci = "0000:04:00.0"
    host.pci_gpu(pci, "0x8086", 0)
    for name, value in {
        "tile0/gt0/freq0/act_freq": 2400,
        "tile0/physical_vram_size_bytes": 8 << 30,
        "hwmon/hwmon1/temp2_input": 48000,
        "hwmon/hwmon1/temp2_label": "pkg",
        "hwmon/hwmon1/temp1_input": 1000,
        "hwmon/hwmon1/energy1_input": 5_000_000,
    }.items():
        host.write(f"bus/pci/devices/{pci}/{name}", value)
    vulkan = Vulkan(EngineList(("engine",), engine.source), root=host.sys, environ={})
    first = vulkan.sample()[0].metrics
    assert (first.clock_core_mhz, first.temperature_c, first.energy_j, first.power_w) == (2400, 48, 5, None)
    host.write(f"bus/pci/devices/{pci}/hwmon/hwmon1/energy1_input", 6_000_000)
    assert (vulkan.sample()[0].metrics.power_w or 0) > 0


def test_sensors_of_which_it_is_not_sure_whose_they_are_are_nobodys(host: Any) -> None:
    engine = Engine("GGML_VK_VISIBLE_DEVICES", [SMALL], [SMALL])
    for card, pci in enumerate(("0000:00:02.0", "0000:04:00.0")):
        host.pci_gpu(pci, "0x8086", card)
        host.write(f"bus/pci/devices/{pci}/hwmon/hwmon1/temp1_input", 30000)
    (device,) = Vulkan(EngineList(("engine",), engine.source), root=host.sys, environ={}).sample()
    assert (device.metrics.temperature_c, device.pci) == (None, None)


def test_an_integrated_gpu_has_the_hosts_memory(host: Any) -> None:
    engine = Engine("GGML_VK_VISIBLE_DEVICES", [INSIDE, SMALL], [INSIDE, SMALL])
    inside, card = Vulkan(EngineList(("engine",), engine.source), root=host.sys, environ={}).sample()
    assert (inside.unified_memory, card.unified_memory) == (True, False)


def test_a_list_with_cuda_in_it_is_made_once() -> None:
    text = (RECORDED / "cuda_vulkan.txt").read_text()
    asked = 0

    class Source:
        def read(self) -> str:
            nonlocal asked
            asked += 1
            return text

    listing = EngineList(("engine",), lambda environment, every_s: Source())
    assert [listing.read() for _ in range(5)] == [entries(text)] * 5
    assert asked == 1


def test_the_last_list_serves_while_there_is_no_new_one_but_not_for_ever() -> None:
    answers: list[str | None] = [(RECORDED / "vulkan.txt").read_text()]
    now = 0.0

    class Source:
        def read(self) -> str | None:
            return answers[-1]

    listing = EngineList(("engine",), lambda environment, every_s: Source(), lambda: now)
    assert not listing.answered
    assert len(listing.read()) == 1
    answers.append(None)
    now = KEPT_S
    assert len(listing.read()) == 1
    now = KEPT_S + 1
    assert listing.read() == ()
    assert listing.answered


@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("NVIDIA GeForce RTX 3090", "nvidia"),
        ("Quadro P2000", "nvidia"),
        ("AMD Radeon Graphics (RADV VEGA20)", "amd"),
        ("Intel(R) Graphics [0xe223]", "intel"),
        ("Apple M4 Max", "apple"),
        ("llvmpipe (LLVM 15.0.7, 256 bits)", None),
    ],
)
def test_a_vendor_is_known_by_the_name(name: str, maker: str | None) -> None:
    assert vendor(name) == maker
