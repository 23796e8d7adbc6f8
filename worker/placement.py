"""Where one more engine of a model would run, and who would have to go: a plain decider, no clock, no effects.

The one source of the cost of every cold pull, of what the keeper does, and of what `explain` and 503s say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from worker.cost import CPU_TIGHT, cost_of_going, cost_of_room, left_bytes, roominess
from worker.plans import (
    STANDARD,
    Cannot,
    DeviceRoom,
    Evict,
    Fits,
    Need,
    Plan,
    Policy,
    Resident,
    Wait,
    Wanted,
    Yield,
)
from worker.reasons import cannot_text, nowhere_text, wait_text, yield_text
from worker.turns import left_s, may_go, may_yield, order_of_going
from worker.ways import Way, device_sets, fits, free_after, size_of, ways

__all__ = [
    "STANDARD",
    "Cannot",
    "DeviceRoom",
    "Evict",
    "Fits",
    "Need",
    "Plan",
    "Policy",
    "Resident",
    "Wait",
    "Wanted",
    "Yield",
    "place",
    "place_any",
]


def place(
    wanted: Wanted, rooms: Sequence[DeviceRoom], residents: Sequence[Resident], policy: Policy = STANDARD
) -> Plan:
    """What can be done for one more engine of a model.

    It fits, or idle engines make room, or engines that had their turn yield; else the reason, with figures. A lenient
    one that fits nowhere is given all that can be made free of a device.
    """
    here = [each for each in residents if each.model == wanted.model]
    if wanted.engines_limit is not None and len(here) >= wanted.engines_limit:
        return Wait(f"{wanted.model} has {len(here)} of at most {wanted.engines_limit} engines here (max_engines)")
    usable = _usable(wanted, rooms)
    if not usable:
        return Cannot(nowhere_text(wanted, rooms))
    taken = {device for each in here for device in each.devices}
    open_rooms = [room for room in usable if room.device not in taken]
    if not open_rooms:
        return Wait(f"{wanted.model} has an engine on each of its devices here: {', '.join(sorted(taken))}")
    return _placed(wanted, usable, open_rooms, residents, policy)


def place_any(
    wanted: Wanted,
    needs: Sequence[Need],
    rooms: Sequence[DeviceRoom],
    residents: Sequence[Resident],
    policy: Policy = STANDARD,
) -> Plan:
    """`place` for the best of several needs, the best first: a lesser one counts only where a better one can not be
    met whatever this node's engines do."""
    strict = [place(replace(wanted, need=need, lenient=False), rooms, residents, policy) for need in needs]
    for plan in strict:
        if not isinstance(plan, Cannot) and not (isinstance(plan, Wait) and plan.foreign):
            return plan
    if wanted.lenient:
        return place(replace(wanted, need=needs[-1]), rooms, residents, policy)
    return next((plan for plan in strict if isinstance(plan, Wait)), strict[-1])


def _placed(
    wanted: Wanted,
    usable: Sequence[DeviceRoom],
    open_rooms: Sequence[DeviceRoom],
    residents: Sequence[Resident],
    policy: Policy,
) -> Plan:
    size = size_of(wanted, usable)
    if size is None:
        return Cannot(cannot_text(wanted, usable))
    sets = device_sets(wanted, open_rooms, size, residents)
    if not sets:
        return Wait(f"{wanted.model} needs {size} devices of {len(open_rooms)} that it is not on yet")
    found = ways(wanted, sets, residents, lambda each: may_go(each, policy))
    if found:
        return _best(wanted, found, policy)
    late = ways(wanted, sets, residents, lambda each: may_go(each, policy) or may_yield(each, wanted.waited_s, policy))
    if late:
        best = min(late, key=lambda way: _evicting(wanted, way, policy))
        busy = tuple(each for each in best.victims if each.busy)
        return Yield(tuple(each.engine for each in busy), yield_text(wanted, busy))
    return _waits(wanted, sets, residents, policy)


def _usable(wanted: Wanted, rooms: Sequence[DeviceRoom]) -> list[DeviceRoom]:
    by_name = {room.device: room for room in rooms}
    names = wanted.devices if wanted.devices and wanted.ordered else sorted(wanted.devices or by_name, key=_natural)
    return [by_name[name] for name in names if name in by_name and by_name[name].reason is None]


def _natural(device: str) -> tuple[str, list[int]]:
    """`cuda:2` before `cuda:10`, whole GPUs before their parts."""
    backend, _, number = device.partition(":")
    return backend, [int(part) for part in number.split(".") if part.isdecimal()]


def _best(wanted: Wanted, found: Sequence[Way], policy: Policy) -> Plan:
    """Free room before anybody is stopped; then the order of the profile, or what the policy packs."""
    free = [way for way in found if not way.victims]
    if free:
        way = min(free, key=lambda way: _fitting(wanted, way, policy))
        tight = not fits(wanted.need, [room.free_bytes for room in way.rooms])
        cost = CPU_TIGHT if tight else cost_of_room(way.rooms, wanted.need, local=wanted.local)
        return Fits(way.devices, cost, wanted.need)
    way = min(found, key=lambda way: _evicting(wanted, way, policy))
    cost = cost_of_going(way.rooms, way.victims, local=wanted.local)
    return Evict(way.devices, tuple(each.engine for each in way.victims), cost, wanted.need)


def _fitting(wanted: Wanted, way: Way, policy: Policy) -> tuple[object, ...]:
    ranks = _ranks(wanted, way)
    return (*ranks, _packing(wanted, way, policy), way.devices)


def _packing(wanted: Wanted, way: Way, policy: Policy) -> float:
    if policy.pack == "fill":
        return left_bytes(way.rooms, wanted.need)
    return -roominess(way.rooms, wanted.need)


def _evicting(wanted: Wanted, way: Way, policy: Policy) -> tuple[object, ...]:
    losses = max((order_of_going(each) for each in way.victims), default=(False, 0.0, 0.0, ""))
    return (
        losses[:2],
        *_ranks(wanted, way),
        losses[2],
        len(way.victims),
        _packing(wanted, way, policy),
        way.devices,
    )


def _ranks(wanted: Wanted, way: Way) -> list[int]:
    ranks: Mapping[str, int] = {name: rank for rank, name in enumerate(wanted.devices if wanted.ordered else ())}
    return sorted(ranks.get(device, 0) for device in way.devices)


def _waits(
    wanted: Wanted, sets: Sequence[tuple[DeviceRoom, ...]], residents: Sequence[Resident], policy: Policy
) -> Wait:
    possible = [rooms for rooms in sets if fits(wanted.need, free_after(rooms, residents))]
    names = {room.device for rooms in possible or sets for room in rooms}
    there = [each for each in residents if names.intersection(each.devices)]
    times = [left for each in there if (left := left_s(each, wanted.waited_s, policy)) is not None]
    foreign = not possible and not wanted.lenient
    shown = [room for room in {room.device: room for rooms in sets for room in rooms}.values() if room.device in names]
    text = wait_text(wanted, shown, there, policy, foreign=foreign)
    return Wait(text, min(times, default=None) if possible else None, foreign=foreign)
