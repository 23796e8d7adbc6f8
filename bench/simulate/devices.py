"""Simulated GPUs: their memory is what the simulated engines on them hold, and they report it as a driver would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from schemas.node import Device, DeviceMetrics, ProcessMemory

BACKEND: Final = "cuda"
PIN_VARIABLE: Final = "SIMULATED_DEVICES"
"""In an engine's environment: the devices that it may use."""


class OutOfMemory(Exception):
    """A device has less memory free than an engine asks of it."""


class Gpus:
    """All devices of one node, as its accelerator. The one owner of their memory."""

    backend = BACKEND

    def __init__(self, node: str, count: int, total_bytes: int) -> None:
        self.names = tuple(f"{BACKEND}:{number}" for number in range(count))
        self._node = node
        self._total_bytes = total_bytes
        self._held: dict[str, dict[int, int]] = {name: {} for name in self.names}

    # -- what engines do
    def take(self, pid: int, devices: Sequence[str], size_bytes: int) -> None:
        """Memory for the engine `pid`, in even parts over its devices. Raises `OutOfMemory` and takes nothing then."""
        part = -(-size_bytes // len(devices))
        for name in devices:
            if part > self.free_bytes(name):
                raise OutOfMemory(f"allocating {part / 2**20:.2f} MiB on device {name.rpartition(':')[2]}")
        for name in devices:
            self._held[name][pid] = part

    def release(self, pid: int) -> None:
        """The engine is gone. Safe to call twice."""
        for held in self._held.values():
            held.pop(pid, None)

    def free_bytes(self, name: str) -> int:
        """What a device has left."""
        return self._total_bytes - sum(self._held[name].values())

    # -- what the worker asks (`worker.accelerators.Accelerator`)
    def discover(self) -> bool:
        """They are always there."""
        return True

    def sample(self) -> list[Device]:
        """From the worker's thread: each device is read at once."""
        return [self._device(number, name) for number, name in enumerate(self.names)]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """The pin."""
        return {PIN_VARIABLE: ",".join(devices)}

    def _device(self, number: int, name: str) -> Device:
        held = tuple(self._held[name].items())
        used = sum(size for _, size in held)
        processes = tuple(ProcessMemory(pid=pid, memory_bytes=size) for pid, size in held)
        return Device(
            device=name,
            backend=BACKEND,
            name="Simulated GPU",
            uuid=f"GPU-{self._node}-{number}",
            memory_total_bytes=self._total_bytes,
            memory_free_bytes=self._total_bytes - used,
            metrics=DeviceMetrics(memory_used_bytes=used, processes=processes),
        )
