"""Whether an engine's memory is there: plain sums over what devices say is free and what loads under way will take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from schemas.node import Device
from worker.memory import gib

MemoryCheck = Literal["refuse", "warn", "off"]
Reserve = Callable[[Device], int]
"""Bytes of a device that are kept free of engines."""


def no_reserve(device: Device) -> int:
    """Everything may be given."""
    return 0


@dataclass(frozen=True, slots=True)
class Claim:
    """What an engine that is being loaded will take of its devices together; its memory may not show as used yet."""

    devices: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """The memory of one engine's devices together."""

    devices: tuple[str, ...]
    free_bytes: int
    reserved_bytes: int = 0
    claimed_bytes: int = 0

    @property
    def usable_bytes(self) -> int:
        """What a new engine may take."""
        return max(self.free_bytes - self.reserved_bytes - self.claimed_bytes, 0)

    def text(self) -> str:
        """For a person who asks why a model does not fit."""
        parts = [f"{gib(self.free_bytes)} free"]
        if self.reserved_bytes:
            parts.append(f"{gib(self.reserved_bytes)} reserved (reserved_memory_bytes)")
        if self.claimed_bytes:
            parts.append(f"{gib(self.claimed_bytes)} for engines that are being loaded")
        return f"{', '.join(self.devices)}: {' - '.join(parts)} = {gib(self.usable_bytes)} to use"


def room(
    names: tuple[str, ...], devices: Iterable[Device], claims: Iterable[Claim], reserve: Reserve = no_reserve
) -> Room | None:
    """The room on the devices `names`, less what is kept of each; None if one of them is not known.

    A claim on several devices is taken to be spread evenly over them.
    """
    seen: Mapping[str, Device] = {device.device: device for device in devices if device.memory_total_bytes > 0}
    if not names or any(name not in seen for name in names):
        return None
    free_bytes = sum(seen[name].memory_free_bytes for name in names)
    claimed = sum(claim.size_bytes * _shared(claim.devices, names) // len(claim.devices) for claim in claims)
    return Room(names, free_bytes, sum(reserve(seen[name]) for name in names), claimed)


def out_of_use(names: tuple[str, ...], devices: Iterable[Device]) -> str | None:
    """Why one of the devices `names` can have no engine now."""
    gone = (f"{each.device}: {each.reason}" for each in devices if each.device in names and each.reason is not None)
    return next(gone, None)


def default_check(names: tuple[str, ...]) -> MemoryCheck:
    """A GPU without room fails, or is slow beyond use. A host has swap, and files that it can drop from memory."""
    return "warn" if all(name.startswith("cpu") for name in names) else "refuse"


def _shared(these: tuple[str, ...], those: tuple[str, ...]) -> int:
    return sum(name in those for name in these)
