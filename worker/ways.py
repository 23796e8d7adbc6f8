"""Sets of devices that an engine could run on, and the fewest residents that must go for each. Plain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Final

from worker.plans import DeviceRoom, Need, Resident, Wanted
from worker.turns import order_of_going

SETS_LIMIT: Final = 256
"""Sets of devices that are looked at for a split engine; of more, only the emptiest."""


@dataclass(frozen=True, slots=True)
class Way:
    """A set of devices, and who must go for it."""

    rooms: tuple[DeviceRoom, ...]
    victims: tuple[Resident, ...]

    @property
    def devices(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(room.device for room in self.rooms)


def fits(need: Need, free: Sequence[int]) -> bool:
    """Whether it fits into devices with so much free. llama.cpp gives each of them a part of what is spread in
    proportion to its free memory. What needs nothing fits everywhere."""
    whole, spread = sum(free), need.spread_bytes
    if not (spread or need.each_bytes):
        return True
    return spread <= whole and all(need.each_bytes * whole <= one * (whole - spread) for one in free)


def size_of(wanted: Wanted, usable: Sequence[DeviceRoom]) -> int | None:
    """How many devices its engine is spread over; None if even all of them are too small."""
    if wanted.split is not None:
        enough = wanted.split <= len(usable) and (wanted.lenient or _ever(wanted.need, usable, wanted.split))
        return wanted.split if enough else None
    sizes = (size for size in range(1, len(usable) + 1) if _ever(wanted.need, usable, size))
    return next(sizes, 1 if wanted.lenient else None)


def _ever(need: Need, usable: Sequence[DeviceRoom], size: int) -> bool:
    """Whether some `size` devices could hold it, were they empty: the largest could first."""
    return fits(need, sorted((room.total_bytes for room in usable), reverse=True)[:size])


def device_sets(
    wanted: Wanted, rooms: Sequence[DeviceRoom], size: int, residents: Sequence[Resident]
) -> list[tuple[DeviceRoom, ...]]:
    """The sets of so many devices that are worth a look."""
    if comb(len(rooms), size) <= SETS_LIMIT:
        return list(combinations(rooms, size))
    could = {room.device: room.free_bytes + _held(room.device, residents) for room in rooms}
    emptiest = sorted(rooms, key=lambda room: (-room.free_bytes, room.device))[:size]
    largest = sorted(rooms, key=lambda room: (-could[room.device], room.device))[:size]
    return (
        [tuple(rooms[:size]), tuple(emptiest), tuple(largest)] if wanted.ordered else [tuple(emptiest), tuple(largest)]
    )


def ways(
    wanted: Wanted,
    sets: Iterable[tuple[DeviceRoom, ...]],
    residents: Sequence[Resident],
    goes: Callable[[Resident], bool],
) -> list[Way]:
    """Those of the sets that it can have if whoever `goes` may be stopped."""
    found = ((rooms, _victims(_asked(wanted, rooms, residents), rooms, residents, goes)) for rooms in sets)
    return [Way(rooms, victims) for rooms, victims in found if victims is not None]


def _asked(wanted: Wanted, rooms: tuple[DeviceRoom, ...], residents: Sequence[Resident]) -> Need:
    """What it must get of these devices. A lenient one is content with all that they could have free."""
    need = wanted.need
    possible = [room.free_bytes + _held(room.device, residents) for room in rooms]
    if not wanted.lenient or fits(need, possible):
        return need
    return Need(sum(possible), 0, need.context_tokens)


def _victims(
    need: Need, rooms: tuple[DeviceRoom, ...], residents: Sequence[Resident], goes: Callable[[Resident], bool]
) -> tuple[Resident, ...] | None:
    """The fewest that must go, cheapest first; None if that is not enough."""
    names = [room.device for room in rooms]
    going: list[Resident] = []
    there = [each for each in residents if any(each.held_bytes.get(name) for name in names)]
    movable = sorted((each for each in there if goes(each)), key=order_of_going)
    while not fits(need, free_after(rooms, going)):
        if not movable:
            return None
        going.append(movable.pop(0))
    for each in tuple(reversed(going)):
        rest = [other for other in going if other is not each]
        if fits(need, free_after(rooms, rest)):
            going = rest
    return tuple(going)


def free_after(rooms: Iterable[DeviceRoom], going: Iterable[Resident]) -> list[int]:
    """What is free on each of the devices once these are gone."""
    gone = tuple(going)
    return [room.free_bytes + _held(room.device, gone) for room in rooms]


def _held(device: str, residents: Iterable[Resident]) -> int:
    return sum(each.held_bytes.get(device, 0) for each in residents)
