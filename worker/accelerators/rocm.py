"""AMD's devices: found and measured in /sys, named and completed by `amd-smi`; either is enough.

`rocm:0` and up are ROCm's own numbers, which follow the kernel's compute nodes and not the PCI bus.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from schemas.node import Device, DeviceMetrics
from worker.accelerators.amd_smi import AmdSmi, Gpu
from worker.accelerators.drm import SYS, Card
from worker.accelerators.kfd import Node, nodes
from worker.accelerators.visible import Visible


class Rocm:
    """Those that the worker's own `ROCR_VISIBLE_DEVICES` and `HIP_VISIBLE_DEVICES` leave it."""

    backend = "rocm"

    def __init__(self, root: Path = SYS, smi: AmdSmi | None = None, environ: Mapping[str, str] = os.environ) -> None:
        self._root = root
        self._smi = smi or AmdSmi()
        self._runtime = Visible.of(environ.get("ROCR_VISIBLE_DEVICES"))
        self._hip = Visible.of(environ.get("HIP_VISIBLE_DEVICES") or None)
        self._cards: dict[str, Card] = {}
        self._shown: dict[str, str] = {}

    def discover(self) -> bool:
        """Whether there is a driver and a device that it computes with."""
        return bool(self.sample())

    def sample(self) -> list[Device]:
        """The devices of now."""
        told = self._smi.gpus()
        found = list(self._by_kernel(told)) or [device for gpu in told if (device := _by_tool(gpu))]
        mine = self._runtime.choose([(int(device.device.partition(":")[2]), device) for device in found])
        places = [(place, device) for place, (_, device) in enumerate(mine)]
        chosen = [(mine[place][0], device) for place, device in self._hip.choose(places)]
        self._shown |= {device.device: device.uuid or str(number) for number, device in chosen}
        return [device for _, device in chosen]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """These devices and no other; without any, none.

        `ROCR_VISIBLE_DEVICES` chooses, by id where there is one, and `HIP_VISIBLE_DEVICES` counts what that leaves. It
        is always set: unset, HIP would go by `CUDA_VISIBLE_DEVICES`.
        """
        if not devices:
            return {"HIP_VISIBLE_DEVICES": "-1"}
        shown = (self._shown.get(device) or device.partition(":")[2] for device in devices)
        return {
            "ROCR_VISIBLE_DEVICES": ",".join(shown),
            "HIP_VISIBLE_DEVICES": ",".join(str(place) for place in range(len(devices))),
        }

    def _by_kernel(self, told: Sequence[Gpu]) -> Iterator[Device]:
        by_pci = {gpu.pci: gpu for gpu in told if gpu.pci}
        for node in nodes(self._root):
            card = self._cards.setdefault(node.pci, Card(node.pci, "amd", self._root / "bus/pci/devices" / node.pci))
            gpu = by_pci.get(node.pci)
            memory = card.memory() or (gpu.memory if gpu else None)
            if card.is_there() and memory:
                yield _device(node, gpu, memory, card.metrics())


def _device(node: Node, gpu: Gpu | None, memory: tuple[int, int], live: DeviceMetrics) -> Device:
    """The kernel's figures are of now and win over the program's."""
    told = gpu.metrics if gpu else DeviceMetrics()
    fresh = {name: value for name, value in live if value is not None}
    return Device(
        device=f"rocm:{node.index}",
        backend="rocm",
        name=(gpu.name if gpu else None) or f"AMD {node.target}",
        uuid=node.uuid or (gpu.uuid if gpu else None),
        memory_total_bytes=memory[0],
        memory_free_bytes=min(memory[1], memory[0]),
        metrics=told.model_copy(update=fresh),
        pci=node.pci,
        driver=gpu.driver if gpu else None,
        unified_memory=node.unified_memory,
    )


def _by_tool(gpu: Gpu) -> Device | None:
    if gpu.memory is None:
        return None
    return Device(
        device=f"rocm:{gpu.index}",
        backend="rocm",
        name=gpu.name or "AMD",
        uuid=gpu.uuid,
        memory_total_bytes=gpu.memory[0],
        memory_free_bytes=gpu.memory[1],
        metrics=gpu.metrics,
        pci=gpu.pci,
        driver=gpu.driver,
    )
