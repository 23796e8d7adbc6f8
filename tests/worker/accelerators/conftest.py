"""A host made for a test: a folder of programs that print what a vendor's tool would, and a tree of /sys."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worker.accelerators.listing import EngineList
from worker.accelerators.tool import Tool

FAKES = Path(__file__).parents[2] / "fakes"
RECORDED = FAKES / "recorded"
TIMEOUT_S = 1.0

SCRIPT = """#!/bin/sh
echo "$@" >> {folder}/asked
mode=$(/bin/cat {folder}/mode)
case "$mode" in
  hang) exec /bin/sleep 60 ;;
  fail) echo "something is broken"; exit 1 ;;
  garbage) exec /bin/cat {folder}/garbage ;;
  huge) while :; do /bin/cat {folder}/garbage || exit 0; done ;;
esac
{answers}
exit 2
"""


class Host:
    """Programs on the PATH and a tree of /sys."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.sys = folder / "sys"
        self.bin.mkdir()
        self.sys.mkdir()
        (self.bin / "garbage").write_bytes(bytes(range(256)) * 256 + b"\nindex, uuid\n{[ \xff\n")
        self.mode("ok")
        self.ticks = (float(at) for at in count(0, 1000))

    def mode(self, mode: str) -> None:
        """How all programs behave from now on: ok, hang, fail, garbage, huge."""
        (self.bin / "mode").write_text(mode)

    def program(self, name: str, **answers: str) -> str:
        """A program that prints a recorded file when its arguments hold a word; `any` for whatever it is asked."""
        lines = [
            f'case "$*" in *{"" if word == "any" else word}*) exec /bin/cat {RECORDED / file} ;; esac'
            for word, file in answers.items()
        ]
        path = self.bin / name
        path.write_text(SCRIPT.format(folder=self.bin, answers="\n".join(lines)))
        path.chmod(0o755)
        return str(path)

    def clock(self) -> float:
        """A thousand seconds later each time: nothing is fresh, and whatever failed is tried again."""
        return next(self.ticks)

    def tool(self, *argv: str) -> Tool:
        """A tool that is asked at each reading."""
        return Tool(argv, timeout_s=TIMEOUT_S, clock=self.clock)

    def listing(self, file: str) -> EngineList:
        """The list of an engine that prints a recorded file."""
        argv = (self.program("llama-server", any=f"engine/{file}"),)
        tool = lambda environment, every_s: Tool(  # noqa: E731
            (*argv, "--list-devices"), timeout_s=TIMEOUT_S, environment=environment, clock=self.clock
        )
        return EngineList(argv, tool, self.clock)

    def asked(self) -> list[str]:
        """What the programs were asked so far."""
        file = self.bin / "asked"
        return file.read_text().splitlines() if file.exists() else []

    def write(self, path: str, text: Any) -> None:
        """One file of /sys."""
        file = self.sys / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def amd_gpu(self, number: int, pci: str, *, unique_id: int = 0, target: int = 110000, total_gib: int = 24) -> None:
        """One AMD GPU: a compute node and a PCI device with sensors."""
        bus = int(pci.split(":")[1], 16)
        properties = f"cpu_cores_count 0\nsimd_count 192\ngfx_target_version {target}\nlocation_id {bus << 8}\ndomain 0"
        self.write(f"class/kfd/kfd/topology/nodes/{number}/properties", f"{properties}\nunique_id {unique_id}")
        self.pci_gpu(pci, "0x1002", number)
        for name, value in {
            "mem_info_vram_total": total_gib << 30,
            "mem_info_vram_used": 4 << 30,
            "gpu_busy_percent": 87,
            "hwmon/hwmon3/temp1_input": 55000,
            "hwmon/hwmon3/temp1_label": "edge",
            "hwmon/hwmon3/temp2_input": 63000,
            "hwmon/hwmon3/power1_average": 88000000,
            "hwmon/hwmon3/power1_cap": 327000000,
            "hwmon/hwmon3/freq1_input": 1500000000,
            "hwmon/hwmon3/freq2_input": 1249000000,
        }.items():
            self.write(f"bus/pci/devices/{pci}/{name}", value)

    def pci_gpu(self, pci: str, vendor: str, card: int) -> Path:
        """A PCI device with a card of the display system."""
        self.write(f"bus/pci/devices/{pci}/vendor", vendor)
        self.write(f"bus/pci/devices/{pci}/uevent", f"DRIVER=some\nPCI_SLOT_NAME={pci}")
        folder = self.sys / f"class/drm/card{card}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "device").symlink_to(self.sys / f"bus/pci/devices/{pci}")
        (self.sys / f"class/drm/card{card}-DP-1").mkdir()
        return folder

    def lose(self, pci: str) -> None:
        """The GPU falls off its bus: its sensors and its memory are gone."""
        shutil.rmtree(self.sys / "bus/pci/devices" / pci)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A host without any device, without any of this machine's programs and variables."""
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", str(made.bin))
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("ONEAPI_DEVICE_SELECTOR", raising=False)
    yield made


@pytest.fixture
def nvml() -> ModuleType:
    """tests/fakes/nvml.py: `Library(gpu(0), gpu(1))` is a driver with two GPUs."""
    return sys.modules.get("fakes_nvml") or _load()


def _load() -> ModuleType:
    import importlib.util

    spec = importlib.util.spec_from_file_location("fakes_nvml", FAKES / "nvml.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fakes_nvml"] = module
    spec.loader.exec_module(module)
    return module
