"""Which kinds a node has: built-in ones, strangers', allowed and blocked ones, and those the engine cannot use."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from schemas.node import Device
from worker.accelerators import Accelerator, AcceleratorSettings, chosen, discover, environment, sample
from worker.accelerators.amd_smi import AmdSmi
from worker.accelerators.cuda import Cuda
from worker.accelerators.nvidia_smi import NvidiaSmi
from worker.accelerators.rocm import Rocm
from worker.accelerators.tpu import Tpu
from worker.settings import WorkerSettings

STRANGER = """
from schemas.node import Device

class Npu:
    backend = "npu"
    broken = False

    def discover(self):
        return True

    def sample(self):
        if Npu.broken:
            raise RuntimeError("no card")
        one = Device(device="npu:0", backend="npu", name="N", memory_total_bytes=8, memory_free_bytes=8)
        return [one, one.model_copy(update={"device": "cuda:0"}), "junk"]

    def environment(self, devices):
        return {"NPU": ",".join(devices)}

class Late(Npu):
    def discover(self):
        raise OSError("no driver")
"""


def names(found: Sequence[Any]) -> list[str]:
    return [device.device for device in sample(found)]


class Machine:
    """A host with some NVIDIA GPUs, and what is found on it."""

    def __init__(self, host: Any, nvml: Any) -> None:
        self.host = host
        self.nvml = nvml
        self.library = nvml.Library(loaded=False)

    def nvidia(self, *names: str) -> None:
        """It has these."""
        self.library = self.nvml.Library(*(self.nvml.gpu(at, Name=name) for at, name in enumerate(names)))

    def find(self, list_file: str | None = None, **choice: Any) -> list[Accelerator]:
        """Its accelerators, with an engine that prints this list."""
        absent = self.host.tool("absent")
        smi, amd = NvidiaSmi(absent, absent, absent), AmdSmi(absent, absent, absent, absent)
        return discover(
            choice=AcceleratorSettings.model_validate(choice),
            listing=self.host.listing(list_file) if list_file else None,
            makers={"cuda": lambda: Cuda(self.library, smi, {}), "rocm": lambda: Rocm(self.host.sys, amd, {})},
            root=self.host.sys,
        )


@pytest.fixture
def machine(host: Any, nvml: Any) -> Machine:
    """Without a GPU."""
    return Machine(host, nvml)


@pytest.fixture
def nvidia(machine: Machine) -> Machine:
    """With two."""
    machine.nvidia("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3090")
    return machine


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Installs a distribution with these entry points. Gives its module."""
    folder = tmp_path / "site"
    name = f"puna_stranger_{uuid4().hex}"

    def put(**points: str) -> Any:
        facts = folder / f"{name}-1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{point} = {value.replace('stranger', name)}" for point, value in points.items()]
        (facts / "entry_points.txt").write_text("\n".join(("[puna.accelerators]", *lines)) + "\n")
        (folder / f"{name}.py").write_text(STRANGER)
        monkeypatch.syspath_prepend(folder)
        return import_module(name)

    yield put
    sys.modules.pop(name, None)


def test_a_host_without_gpus_has_its_cpu(machine: Machine) -> None:
    assert names(machine.find()) == ["cpu:0"]


def test_the_cpu_comes_last(nvidia: Machine) -> None:
    assert names(nvidia.find()) == ["cuda:0", "cuda:1", "cpu:0"]


def test_a_node_may_have_only_some_of_the_devices(nvidia: Machine) -> None:
    some = chosen(nvidia.find(), ["cuda:1"])
    assert names(some) == ["cuda:1"]
    assert environment(some, ["cuda:1"]) == environment(nvidia.find(), ["cuda:1"])
    assert names(chosen(nvidia.find(), ["cpu:0"])) == ["cpu:0"]
    assert names(chosen(nvidia.find(), ())) == ["cuda:0", "cuda:1", "cpu:0"]


def test_a_card_that_is_chosen_comes_with_its_parts() -> None:
    class Cut:
        backend = "cuda"

        def discover(self) -> bool:
            return True

        def sample(self) -> list[Device]:
            whole: dict[str, Any] = {"backend": "cuda", "name": "G", "memory_total_bytes": 8, "memory_free_bytes": 8}
            parts = [Device(device=f"cuda:0.{n}", parent="cuda:0", **whole) for n in (0, 1)]
            return [*parts, Device(device="cuda:1", **whole)]

        def environment(self, devices: Sequence[str]) -> dict[str, str]:
            return {}

    assert names(chosen([Cut()], ["cuda:0"])) == ["cuda:0.0", "cuda:0.1"]
    assert names(chosen([Cut()], ["cuda:0.1", "cuda:1"])) == ["cuda:0.1", "cuda:1"]


@pytest.mark.parametrize(
    ("given", "devices"),
    [("auto", ()), (["auto"], ()), ("", ()), ("cuda:0, cuda:1", ("cuda:0", "cuda:1")), (["cuda:0.1"], ("cuda:0.1",))],
)
def test_devices_are_named_or_all(given: Any, devices: tuple[str, ...]) -> None:
    assert WorkerSettings(devices=given).devices == devices


@pytest.mark.parametrize("given", ["gpu0", ["cuda:0", "auto"], [0]])
def test_what_is_no_device_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="is no device: write auto, or names as puna doctor tells them"):
        WorkerSettings(devices=given)


def test_a_strangers_accelerator_is_held_to_its_own_devices(machine: Machine, install: Callable[..., Any]) -> None:
    install(npu="stranger:Npu")
    found = machine.find()
    assert names(found) == ["npu:0", "cpu:0"]
    assert environment(found, ["npu:0"]) == {"NPU": "npu:0"}


def test_a_stranger_that_fails_takes_nobody_with_it(
    machine: Machine, install: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    module = install(npu="stranger:Npu", late="stranger:Late", gone="stranger:Missing", nowhere="no.such.module:X")
    found = machine.find()
    module.Npu.broken = True
    assert names(found) == names(found) == ["cpu:0"]
    events = [getattr(record, "event", "") for record in caplog.records]
    assert events.count("accelerator_broken") == 2
    assert events.count("accelerator_failed") == 2


def test_a_driver_that_does_the_unheard_of_costs_its_own_devices_only(nvidia: Machine) -> None:
    def fail() -> None:
        raise ValueError("unheard of")

    nvidia.library.nvmlInit = fail
    assert names(nvidia.find()) == ["cpu:0"]


def test_a_stranger_may_take_the_place_of_a_built_in(install: Callable[..., Any], nvidia: Machine) -> None:
    install(cuda="stranger:Npu")
    assert names(nvidia.find()) == ["cuda:0", "cpu:0"]


def test_a_blocked_backend_is_hidden_and_its_driver_not_touched(nvidia: Machine) -> None:
    found = nvidia.find(block=("cuda",))
    assert names(found) == ["cpu:0"]
    assert environment(found, ["cpu:0"])["CUDA_VISIBLE_DEVICES"] == "-1"
    assert nvidia.library.opened == 0


@pytest.mark.parametrize(
    ("allow", "block", "left"),
    [
        ("cuda", "", ["cuda:0", "cuda:1"]),
        ("cpu", "", ["cpu:0"]),
        ("cuda,cpu", "cuda", ["cpu:0"]),
        ("", "cpu", ["cuda:0", "cuda:1"]),
        ("npu", "", []),
    ],
)
def test_allowed_and_blocked_backends(nvidia: Machine, allow: str, block: str, left: list[str]) -> None:
    assert names(nvidia.find(allow=allow, block=block)) == left


def test_a_blocked_stranger_is_not_made(machine: Machine, install: Callable[..., Any]) -> None:
    install(npu="stranger:Npu")
    assert names(machine.find(block="npu")) == ["cpu:0"]


def test_a_misspelt_backend_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.find(block="cdua")
    assert [record.accelerator for record in caplog.records if hasattr(record, "accelerator")] == ["cdua"]


def test_an_engine_on_the_cpu_sees_no_gpu(nvidia: Machine) -> None:
    assert environment(nvidia.find(), ["cpu:0"]) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "-1"}


def test_a_device_that_this_node_does_not_have_is_said(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    environment(machine.find(block="cuda")[1:], ["cuda:0"])
    assert [getattr(record, "device", None) for record in caplog.records] == ["cuda:0"]


def test_an_engine_with_cuda_and_vulkan_gets_each_card_once(nvidia: Machine) -> None:
    found = nvidia.find("cuda_vulkan.txt")
    assert names(found) == ["cuda:0", "cuda:1", "vulkan:2", "cpu:0"]
    pinned = environment(found, ["cuda:1"])
    assert (pinned["CUDA_VISIBLE_DEVICES"], pinned["GGML_VK_VISIBLE_DEVICES"]) == ("GPU-1111-aaaa", "")


def test_a_card_that_the_engine_reaches_through_vulkan_is_offered_there(machine: Machine) -> None:
    machine.nvidia("NVIDIA GeForce RTX 3060", "NVIDIA Tesla K80")
    found = machine.find("vulkan.txt")
    unreached, offered, _cpu = sample(found)
    assert (offered.device, offered.uuid, offered.reason) == ("vulkan:0", "GPU-0000-aaaa", None)
    assert unreached.device == "cuda:1"
    assert "built without CUDA" in (unreached.reason or "")


def test_gpus_that_the_engine_cannot_use_are_told_of_with_the_reason(nvidia: Machine) -> None:
    first, second, cpu = sample(nvidia.find("none.txt"))
    assert first.reason == second.reason
    assert "does not list it" in (first.reason or "")
    assert cpu.reason is None


def test_an_engine_that_gives_no_list_takes_nothing_away(nvidia: Machine, host: Any) -> None:
    host.mode("fail")
    assert [device.reason for device in sample(nvidia.find("none.txt"))] == [None, None, None]


def test_cuda_without_any_tool_is_taken_from_the_engines_list(machine: Machine) -> None:
    found = machine.find("cuda_vulkan.txt")
    assert names(found) == ["cuda:0", "cuda:1", "vulkan:2", "cpu:0"]
    assert environment(found, ["cuda:1", "cuda:0"])["CUDA_VISIBLE_DEVICES"] == "1,0"


def test_a_tpu_is_named_and_not_offered(machine: Machine, host: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for at, device in enumerate(("0x0063", "0x0063", "0x0042")):
        host.write(f"bus/pci/devices/0000:00:0{at}.0/vendor", "0x1ae0")
        host.write(f"bus/pci/devices/0000:00:0{at}.0/device", device)
    assert names(machine.find(allow=("tpu", "cpu"))) == ["cpu:0"]
    (notice,) = Tpu(host.sys).notices()
    assert notice.startswith("TPU v5e found (2): llama.cpp has no backend for TPUs")
    reasons = [record.reason for record in caplog.records if getattr(record, "event", "") == "accelerator_unusable"]
    assert notice in reasons
