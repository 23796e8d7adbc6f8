"""Resources of a node in discrete and fractional shares: `cpu`, `mem`, `cuda.device`, `cuda.mem`. Plain data and sums.

A slot is one kind of resource over the devices that have it. It is counted in quanta: whole pieces for a discrete slot,
aligned bytes for memory; what there is is rounded down to them. Which device an engine gets is `worker.placement`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final, Protocol

from schemas.node import Device, Engine, Share
from worker.cores import usable_cores

MEMORY_ALIGN_BYTES: Final = 16 << 20
ONE: Final = Decimal(1)
_AMOUNT: Final = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)\s*(?:([KMGT])(?:i?B)?|(%))?", re.IGNORECASE)
_FACTORS: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Slot:
    """One kind of resource."""

    name: str
    totals: Mapping[str, Decimal]
    """By device."""
    quantum: Decimal = ONE
    reserved: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    """By device; never given."""
    occupied: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])

    def available(self, device: str) -> Decimal:
        """What can still be given of one device, in whole quanta."""
        return self._quanta(device) * self.quantum

    def share(self) -> Share:
        """All devices together, for the heartbeat."""
        return Share(
            total=sum(self.totals.values(), _ZERO),
            reserved=sum((min(self.reserved.get(name, _ZERO), total) for name, total in self.totals.items()), _ZERO),
            occupied=sum(self.occupied.values(), _ZERO),
            available=sum((self.available(name) for name in self.totals), _ZERO),
        )

    def _quanta(self, device: str) -> int:
        kept = self.reserved.get(device, _ZERO) + self.occupied.get(device, _ZERO)
        return max(int((self.totals.get(device, _ZERO) - kept) // self.quantum), 0)


def amount(text: str, total: Decimal = _ZERO) -> Decimal:
    """`2`, `0.5`, `1G`, `16MiB`, `5%` of `total`. K, M, G, T are powers of 1024. Raises `ValueError`."""
    hit = _AMOUNT.fullmatch(text.strip())
    if hit is None:
        raise ValueError(f"{text[:40]!r} is no amount; write for example 2, 16M, 1.5G or 5%")
    number = Decimal(hit[1])
    if hit[3]:
        return total * number / 100
    return number * _FACTORS[hit[2].lower()] if hit[2] else number


def slots(
    devices: Iterable[Device],
    cpu_threads: int,
    reserved: Mapping[str, str] | None = None,
    memory_align_bytes: int = MEMORY_ALIGN_BYTES,
) -> dict[str, Slot]:
    """The slots of a node: `cpu` in threads, `mem` in bytes, and for each kind of GPU its `.device` and `.mem`.

    `reserved` is by slot (`cpu`, `mem`, `cuda.mem`), as `amount` reads it, and is kept of each device. A device that
    cannot be used gives nothing. One whose memory is the host's has no `.mem` of its own, else it would be given twice.
    Raises `ValueError` for an amount that is none.
    """
    kept = dict(reserved or {})
    totals: dict[str, dict[str, Decimal]] = {"cpu": {"cpu:0": Decimal(cpu_threads)}}
    for device in devices:
        for name, total in _parts(device):
            totals.setdefault(name, {})[device.device] = total
    align = Decimal(memory_align_bytes)
    return {name: _slot(name, by_device, kept.get(name), align) for name, by_device in totals.items()}


class ShareSettings(Protocol):
    """The settings that shares depend on."""

    @property
    def reserved(self) -> Mapping[str, str]:
        """By slot, as `amount` reads it."""
        ...

    @property
    def reserved_memory_bytes(self) -> int:
        """Of each device."""
        ...

    @property
    def memory_align_bytes(self) -> int:
        """The quantum of memory."""
        ...

    def engine_cores(self, model: str) -> int | None:
        """Processors that an engine of the model may use; `None`: nobody said."""
        ...


def reserved_bytes(device: Device, settings: ShareSettings) -> int:
    """What is kept free of a device's memory: `reserved_memory_bytes`, or what `reserved` says of its kind."""
    slot = memory_slot(device)
    return int(amount(settings.reserved.get(slot, str(settings.reserved_memory_bytes)), _total(device)))


def memory_slot(device: Device) -> str:
    """The slot that a device's memory is part of; unified memory is the host's."""
    return "mem" if device.backend == "cpu" or device.unified_memory else f"{device.backend}.mem"


def node_shares(
    devices: Iterable[Device], engines: Iterable[Engine], settings: ShareSettings, *, cores: int | None = None
) -> dict[str, Share]:
    """What the heartbeat tells: each slot with what engines that have a process hold of it.

    Memory is what was measured, else what was planned, the same of each device. A device is occupied by its first
    engine. Processors are what engines may use, by default all but one on the CPU and one beside a GPU; they are
    shared, so more can be occupied than there is.
    """
    known = {device.device: device for device in devices}
    kept = {memory_slot(device): str(settings.reserved_memory_bytes) for device in known.values()}
    total = usable_cores() if cores is None else cores
    held: dict[str, dict[str, Decimal]] = {}
    for engine in engines:
        if engine.pid is not None:
            _hold(held, engine, known, settings.engine_cores(engine.model) or _cores(engine, total))
    found = slots(known.values(), total, kept | dict(settings.reserved), settings.memory_align_bytes)
    return {name: replace(slot, occupied=held.get(name, {})).share() for name, slot in found.items()}


def _hold(held: dict[str, dict[str, Decimal]], engine: Engine, known: Mapping[str, Device], cores: int) -> None:
    """Add what one engine has."""
    own = [known[name] for name in engine.devices if name in known]
    taken = engine.memory_measured_bytes or engine.memory_planned_bytes or 0
    for device in own:
        slot = memory_slot(device)
        # the host's memory is one pot, whichever device takes of it
        _add(held, slot, "cpu:0" if slot == "mem" else device.device, Decimal(taken // len(own)))
        held.setdefault(f"{device.backend}.device", {})[device.device] = ONE
    _add(held, "cpu", "cpu:0", Decimal(cores))


def _add(held: dict[str, dict[str, Decimal]], slot: str, device: str, amount: Decimal) -> None:
    by_device = held.setdefault(slot, {})
    by_device[device] = by_device.get(device, _ZERO) + amount


def _cores(engine: Engine, total: int) -> int:
    return max(1, total - 1) if all(name.startswith("cpu") for name in engine.devices) else 1


def _total(device: Device) -> Decimal:
    return Decimal(device.memory_total_bytes)


def _parts(device: Device) -> list[tuple[str, Decimal]]:
    memory = Decimal(device.memory_total_bytes)
    if device.backend == "cpu":
        return [("mem", memory)]
    if device.reason is not None:
        return []
    pieces = [(f"{device.backend}.device", ONE)]
    return pieces if device.unified_memory else [*pieces, (f"{device.backend}.mem", memory)]


def _slot(name: str, totals: Mapping[str, Decimal], kept: str | None, align: Decimal) -> Slot:
    quantum = align if name == "mem" or name.endswith(".mem") else ONE
    reserved = {device: amount(kept, total) for device, total in totals.items()} if kept is not None else {}
    return Slot(name, totals, quantum, reserved)
