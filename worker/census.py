"""What placement decides over, counted up: the room of each device and the engines that are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from schemas.node import Device
from worker.kept import Kept
from worker.memory import gib
from worker.plans import DeviceRoom, Resident
from worker.room import Reserve

UNKNOWN_BYTES: Final = 1 << 50
"""Room of a device that does not tell its memory: nothing is refused there."""
RELOAD_S: Final = 2.0
RELOAD_S_PER_GIB: Final = 2.0
"""What a load is taken to cost where none was measured."""


class Usage(Protocol):
    """Who uses an engine. Times by the keeper's clock."""

    def busy(self, engine: str) -> int:
        """Requests in it."""
        ...

    def idle_since(self, engine: str) -> float | None:
        """Since when there is none; None while there is."""
        ...

    def waiting(self, model: str) -> int:
        """Requests that wait here for the model."""
        ...

    def set_yielding(self, engine: str, on: bool) -> None:
        """It takes nothing new, or does again."""
        ...


class Demand(Protocol):
    """How much models are asked for."""

    def per_s(self, model: str, now: float) -> float:
        """Requests a second."""
        ...


@dataclass(frozen=True, slots=True)
class Census:
    """One moment."""

    rooms: tuple[DeviceRoom, ...]
    residents: tuple[Resident, ...]

    def free_bytes(self, devices: Iterable[str]) -> int:
        """On these devices together."""
        names = set(devices)
        return sum(max(room.free_bytes, 0) for room in self.rooms if room.device in names)

    def without(self, engine: str, *, freed: bool) -> Census:
        """As if this engine did not count; with `freed`, as if its memory were free, too."""
        gone = [each for each in self.residents if each.engine == engine] if freed else []
        rooms = tuple(
            replace(room, free_bytes=room.free_bytes + sum(each.held_bytes.get(room.device, 0) for each in gone))
            for room in self.rooms
        )
        return Census(rooms, tuple(each for each in self.residents if each.engine != engine))

    def text(self) -> str:
        """The rooms, for people."""
        return ", ".join(
            f"{room.device} {room.reason or f'{gib(max(room.free_bytes, 0))} free of {gib(room.total_bytes)}'}"
            for room in self.rooms
        )


@dataclass(frozen=True, slots=True)
class Counter:
    """How a census is taken: what is kept of each device, and what all engines may have of it."""

    usage: Usage
    demand: Demand
    reserve: Reserve
    limit_bytes: int | None = None

    def take(self, devices: Sequence[Device], kept: Sequence[Kept], pinned: Iterable[str], now: float) -> Census:
        """The census of `now`."""
        firm = set(pinned)
        residents = tuple(self._resident(each, firm, now) for each in kept)
        unshown = [resident for each, resident in zip(kept, residents, strict=True) if not each.shown]
        slots = {each.engine_id: each.engine.spec.slots for each in kept}
        rooms = tuple(self._room(device, residents, unshown, slots) for device in devices)
        return Census(rooms, residents)

    def _resident(self, each: Kept, pinned: set[str], now: float) -> Resident:
        engine, idle_since = each.engine, self.usage.idle_since(each.engine_id)
        ready_s = now - each.ready_at if each.ready_at is not None and engine.state == "ready" else 0.0
        used = idle_since is None or (each.ready_at is not None and idle_since > each.ready_at)
        held = each.held_bytes()
        return Resident(
            engine=each.engine_id,
            model=each.model,
            devices=each.devices,
            held_bytes=held,
            state="stopping" if each.going else "starting" if each.on_its_way else engine.state,
            busy=self.usage.busy(each.engine_id),
            waiting=self.usage.waiting(each.model),
            pinned=each.model in pinned,
            ready_s=ready_s,
            idle_s=0.0 if idle_since is None else min(now - idle_since, ready_s) if ready_s else now - idle_since,
            reload_s=engine.load_seconds or reload_s(sum(held.values())),
            demand_per_s=self.demand.per_s(each.model, now),
            served=used,
            yielding=each.yielding,
        )

    def _room(
        self, device: Device, residents: Sequence[Resident], unshown: Sequence[Resident], slots: dict[str, int]
    ) -> DeviceRoom:
        name = device.device
        there = [each for each in residents if name in each.devices]
        total = sum(slots[each.engine] for each in there)
        pressure = min(sum(each.busy for each in there) / total, 1.0) if total else 0.0
        if not device.memory_total_bytes:
            return DeviceRoom(name, UNKNOWN_BYTES, UNKNOWN_BYTES, device.reason, pressure)
        reserved = self.reserve(device)
        budget = max(device.memory_total_bytes - reserved, 0)
        budget = min(budget, self.limit_bytes) if self.limit_bytes is not None else budget
        not_seen = sum(each.held_bytes.get(name, 0) for each in unshown)
        free = device.memory_free_bytes - reserved - not_seen
        left = budget - sum(each.held_bytes.get(name, 0) for each in there)
        return DeviceRoom(name, min(free, left), budget, device.reason, pressure)


def reload_s(size_bytes: int) -> float:
    """How long a load of so much is taken to last."""
    return RELOAD_S + RELOAD_S_PER_GIB * size_bytes / (1 << 30)
