"""What it costs a node to start one more engine: the priority of its pulls, 1 the cheapest, 9 the dearest.

The same need met by two nodes is compared by the bytes that would be left, so that the emptiest device of a fleet wins.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from worker.plans import DeviceRoom, Need, Resident

WARM: Final = 0
"""A pull for a free slot of a loaded engine."""
FETCH: Final = 7
CPU_ROOM: Final = 8
CPU_TIGHT: Final = 9
ROOMY: Final = 2.0
"""Left of a device, as multiple of what the engine takes: from here on 1, from `SOME` on 2, else 3."""
SOME: Final = 0.5
LITTLE_LOSS: Final = 0.05
"""Seconds of reload a second that stopping the victims costs: below it 4, below `MORE_LOSS` 5, else 6."""
MORE_LOSS: Final = 0.5


def roominess(rooms: Iterable[DeviceRoom], need: Need) -> float:
    """Bytes that would be left, less for a device that is busy."""
    each = tuple(rooms)
    return left_bytes(each, need) * (1 - max((room.pressure for room in each), default=0.0))


def left_bytes(rooms: Iterable[DeviceRoom], need: Need) -> int:
    """Bytes that would be left."""
    each = tuple(rooms)
    return sum(room.free_bytes for room in each) - need.total_bytes(len(each))


def cost_of_room(rooms: Collection[DeviceRoom], need: Need, *, local: bool) -> int:
    """Of an engine that fits into what is free."""
    if any(room.is_cpu for room in rooms):
        return CPU_ROOM if local else CPU_TIGHT
    if not local:
        return FETCH
    taken = max(need.total_bytes(len(rooms)), 1)
    share = roominess(rooms, need) / taken
    return 1 if share >= ROOMY else 2 if share >= SOME else 3


def cost_of_going(rooms: Collection[DeviceRoom], victims: Iterable[Resident], *, local: bool) -> int:
    """Of an engine for which others must be stopped. The dearest of them tells: with more room no more must go."""
    if any(room.is_cpu for room in rooms):
        return CPU_TIGHT
    if not local:
        return FETCH
    loss = max((each.loss for each in victims), default=0.0)
    return 4 if loss < LITTLE_LOSS else 5 if loss < MORE_LOSS else 6
