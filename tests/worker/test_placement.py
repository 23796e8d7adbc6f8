"""Where one more engine would run and who would have to go, case by case."""

from __future__ import annotations

import math
from typing import Any

import pytest

from worker.placement import place, place_any
from worker.plans import Cannot, DeviceRoom, Evict, Fits, Need, Policy, Resident, Wait, Wanted, Yield

GIB = 1 << 30


def room(device: str = "cuda:0", free: float = 24, total: float = 24, **more: Any) -> DeviceRoom:
    return DeviceRoom(device, int(free * GIB), int(total * GIB), **more)


def resident(engine: str = "engine-0", model: str = "a", held: float = 10, **more: Any) -> Resident:
    devices = more.pop("devices", ("cuda:0",))
    each = int(held * GIB / len(devices))
    settled = {"ready_s": 1000.0, "idle_s": 500.0, "reload_s": 10.0, "served": True}
    return Resident(engine, model, devices, dict.fromkeys(devices, each), **(settled | more))


def wanted(need: float = 10, each: float = 0, **more: Any) -> Wanted:
    return Wanted("m", Need(int(need * GIB), int(each * GIB)), **more)


# -- free room


@pytest.mark.parametrize(
    ("free", "pressure", "cost"),
    [(30, 0.0, 1), (29, 0.0, 2), (15, 0.0, 2), (14, 0.0, 3), (10, 0.0, 3), (30, 0.5, 2), (30, 1.0, 3)],
)
def test_more_free_memory_and_less_pressure_cost_less(free: float, pressure: float, cost: int) -> None:
    assert place(wanted(10), [room(free=free, total=80, pressure=pressure)], []) == Fits(("cuda:0",), cost)


def test_the_device_with_most_free_memory_is_taken() -> None:
    rooms = [room("cuda:0", 12), room("cuda:1", 20), room("cuda:2", 16)]
    assert place(wanted(10), rooms, []).devices == ("cuda:1",)  # type: ignore[union-attr]


def test_filling_takes_the_fullest_device_that_has_the_room() -> None:
    rooms = [room("cuda:0", 12), room("cuda:1", 20, pressure=0.9), room("cuda:2", 16), room("cuda:3", 9)]
    fill = Policy(pack="fill")
    assert place(wanted(10), rooms, [], fill).devices == ("cuda:0",)  # type: ignore[union-attr]
    ordered = place(wanted(10, devices=("cuda:1", "cuda:0")), rooms, [], fill)
    assert ordered.devices == ("cuda:1",), "the profile's order goes first"  # type: ignore[union-attr]
    full = [room("cuda:0", 2), room("cuda:1", 4)]
    there = [resident("engine-0", devices=("cuda:0",)), resident("engine-1", "b", devices=("cuda:1",))]
    assert place(wanted(10), full, there, fill).devices == ("cuda:0",)  # type: ignore[union-attr]
    assert place(wanted(10), full, there).devices == ("cuda:1",)  # type: ignore[union-attr]


def test_a_busy_device_counts_for_less_than_its_free_memory() -> None:
    rooms = [room("cuda:0", 20, pressure=0.9), room("cuda:1", 18)]
    assert place(wanted(10), rooms, []).devices == ("cuda:1",)  # type: ignore[union-attr]


def test_the_order_of_the_profile_goes_before_free_memory() -> None:
    rooms = [room("cuda:0", 12), room("cuda:1", 20)]
    assert place(wanted(10, devices=("cuda:0", "cuda:1")), rooms, []).devices == ("cuda:0",)  # type: ignore[union-attr]
    full_first = [room("cuda:0", 5), room("cuda:1", 20)]
    assert place(wanted(10, devices=("cuda:0", "cuda:1")), full_first, []).devices == ("cuda:1",)  # type: ignore[union-attr]


def test_a_device_with_a_reason_is_not_used() -> None:
    rooms = [room("cuda:0", 24, reason="it fell off the bus"), room("cuda:1", 11)]
    assert place(wanted(10), rooms, []) == Fits(("cuda:1",), 3)
    plan = place(wanted(10, devices=("cuda:0", "cuda:7")), rooms, [])
    assert isinstance(plan, Cannot)
    assert "cuda:0: it fell off the bus" in plan.reason
    assert "cuda:7: there is no such device" in plan.reason


def test_the_cpu_costs_eight_with_room_and_nine_without() -> None:
    cpu = room("cpu:0", 12, 16)
    assert place(wanted(10), [cpu], []) == Fits(("cpu:0",), 8)
    holder = resident(held=10, devices=("cpu:0",))
    assert place(wanted(10), [room("cpu:0", 2, 16)], [holder]) == Evict(("cpu:0",), ("engine-0",), 9)
    assert place(wanted(20, lenient=True), [cpu], []) == Fits(("cpu:0",), 9), "alone, it gets what there is"


def test_files_that_must_be_fetched_first_cost_seven() -> None:
    assert place(wanted(10, local=False), [room()], []) == Fits(("cuda:0",), 7)


# -- several devices


def test_an_engine_is_spread_over_the_fewest_devices_that_can_hold_it() -> None:
    rooms = [room(f"cuda:{n}", 24) for n in range(4)]
    assert len(place(wanted(20), rooms, []).devices) == 1  # type: ignore[union-attr]
    assert len(place(wanted(40, each=1), rooms, []).devices) == 2  # type: ignore[union-attr]
    assert len(place(wanted(46, each=2), rooms, []).devices) == 3  # type: ignore[union-attr]
    assert isinstance(place(wanted(93, each=1), rooms, []), Cannot)


def test_one_device_that_could_hold_it_is_waited_for_rather_than_split() -> None:
    rooms = [room("cuda:0", 14), room("cuda:1", 14)]
    plan = place(wanted(20), rooms, [resident(devices=("cuda:0",)), resident("engine-1", "b", devices=("cuda:1",))])
    assert isinstance(plan, Evict)
    assert len(plan.devices) == len(plan.victims) == 1


def test_the_buffers_of_each_device_must_fit_beside_its_part() -> None:
    rooms = [room("cuda:0", 24), room("cuda:1", 2, 24)]
    plan = place(wanted(20, each=3, split=2), rooms, [])
    assert isinstance(plan, Wait), "a small part goes to the full device, its buffers do not"


def test_a_split_that_was_asked_for_is_kept_to() -> None:
    rooms = [room("cuda:0"), room("cuda:1"), room("cuda:2", 12)]
    assert place(wanted(10, split=2), rooms, []).devices == ("cuda:0", "cuda:1")  # type: ignore[union-attr]
    plan = place(wanted(10, split=4), rooms, [])
    assert isinstance(plan, Cannot)
    assert "4 devices" in plan.reason


def test_a_model_has_one_engine_a_device_and_no_more_than_its_limit() -> None:
    here = resident(model="m", held=5)
    assert place(wanted(10), [room("cuda:0", 19), room("cuda:1", 12)], [here]) == Fits(("cuda:1",), 3)
    assert isinstance(place(wanted(10), [room("cuda:0", 19)], [here]), Wait)
    plan = place(wanted(10, engines_limit=1), [room("cuda:0", 19), room("cuda:1")], [here])
    assert isinstance(plan, Wait)
    assert "max_engines" in plan.reason


# -- who goes


def test_an_idle_engine_of_little_loss_goes_first_then_the_longest_idle() -> None:
    engines = [
        resident("engine-0", "a", 8, reload_s=60, demand_per_s=1),
        resident("engine-1", "b", 8, reload_s=60, demand_per_s=0.0, idle_s=10),
        resident("engine-2", "c", 8, reload_s=60, demand_per_s=0.0, idle_s=90),
    ]
    assert place(wanted(8), [room(free=0)], engines) == Evict(("cuda:0",), ("engine-2",), 4)
    assert place(wanted(16), [room(free=0)], engines) == Evict(("cuda:0",), ("engine-2", "engine-1"), 4)
    plan = place(wanted(24), [room(free=0)], engines)
    assert plan == Evict(("cuda:0",), ("engine-2", "engine-1", "engine-0"), 6)


def test_no_more_engines_go_than_must() -> None:
    engines = [resident("engine-0", "a", 2), resident("engine-1", "b", 12, idle_s=1)]
    assert place(wanted(10), [room(free=4)], engines) == Evict(("cuda:0",), ("engine-1",), 4)


def test_the_device_whose_engines_are_least_missed_is_cleared() -> None:
    engines = [
        resident("engine-0", "a", 20, demand_per_s=1.0, devices=("cuda:0",)),
        resident("engine-1", "b", 20, demand_per_s=0.001, devices=("cuda:1",)),
    ]
    plan = place(wanted(10), [room("cuda:0", 4), room("cuda:1", 4)], engines)
    assert plan == Evict(("cuda:1",), ("engine-1",), 4)


@pytest.mark.parametrize(
    "stays",
    [
        {"pinned": True},
        {"busy": 1},
        {"state": "starting"},
        {"state": "stopping"},
        {"ready_s": 3.0, "idle_s": 3.0, "served": False},
        {"ready_s": 3.0, "waiting": 2},
        {"state": "crashed", "waiting": 1},
    ],
)
def test_who_stays_is_waited_for(stays: dict[str, Any]) -> None:
    plan = place(wanted(20), [room(free=14)], [resident(**stays)])
    assert isinstance(plan, Wait)
    assert "engine-0 (a, 10.00 GiB" in plan.reason
    assert "14.00 GiB free of 24.00 GiB" in plan.reason


@pytest.mark.parametrize(
    "goes",
    [
        {"ready_s": 3.0, "idle_s": 1.0},
        {"ready_s": 20.0, "idle_s": 20.0, "served": False},
        {"ready_s": 20.0, "waiting": 1},
        {"state": "crashed"},
        {"yielding": True, "ready_s": 1.0, "served": False, "waiting": 3},
    ],
)
def test_who_had_its_turn_or_served_somebody_goes(goes: dict[str, Any]) -> None:
    assert place(wanted(20), [room(free=14)], [resident(**goes)]) == Evict(("cuda:0",), ("engine-0",), 4)


@pytest.mark.parametrize(("reload_s", "turn_s"), [(0.1, 2), (1, 2), (10, 20), (100, 60)])
def test_a_turn_is_in_proportion_to_the_reload_within_bounds(reload_s: float, turn_s: float) -> None:
    plan = place(wanted(20), [room(free=14)], [resident(ready_s=0.5, idle_s=0.5, served=False, reload_s=reload_s)])
    assert isinstance(plan, Wait)
    assert plan.until_s == pytest.approx(turn_s - 0.5)


# -- yielding


def test_a_busy_engine_yields_when_its_turn_is_over_and_the_other_waited_a_turn() -> None:
    busy, rooms = resident(busy=3, reload_s=10), [room(free=14)]
    plan = place(wanted(20, waited_s=20), rooms, [busy])
    assert isinstance(plan, Yield)
    assert plan.engines == ("engine-0",)
    early = place(wanted(20, waited_s=5), rooms, [busy])
    assert isinstance(early, Wait)
    assert early.until_s == pytest.approx(15)
    assert isinstance(place(wanted(20, waited_s=50), rooms, [resident(busy=3, ready_s=5)]), Wait)
    assert isinstance(place(wanted(20, waited_s=math.inf), rooms, [resident(busy=3, pinned=True)]), Wait)


def test_an_engine_that_yields_already_is_the_one_that_goes_on_yielding() -> None:
    engines = [
        resident("engine-0", "a", busy=1, demand_per_s=0.0, devices=("cuda:0",)),
        resident("engine-1", "b", busy=1, demand_per_s=5.0, devices=("cuda:1",), yielding=True),
    ]
    plan = place(wanted(20, waited_s=100), [room("cuda:0", 14), room("cuda:1", 14)], engines)
    assert isinstance(plan, Yield)
    assert plan.engines == ("engine-1",)


# -- never, and others' memory


def test_what_is_larger_than_all_devices_can_never_start() -> None:
    plan = place(wanted(50), [room("cuda:0"), room("cuda:1")], [])
    assert isinstance(plan, Cannot)
    assert "50.00 GiB" in plan.reason
    assert "cuda:0 24.00 GiB" in plan.reason


def test_memory_that_other_programs_hold_is_told_as_theirs() -> None:
    plan = place(wanted(20), [room(free=5)], [resident(held=2)])
    assert isinstance(plan, Wait)
    assert plan.foreign
    assert "used by other programs" in plan.reason


def test_a_smaller_context_is_taken_only_where_the_larger_can_not_be_had() -> None:
    large, small = Need(20 * GIB, 0, 8192), Need(4 * GIB, 0, 2048)
    ask = wanted()
    assert place_any(ask, [large, small], [room(free=5)], []).need == small  # type: ignore[union-attr]
    holder = resident(held=19, busy=1)
    assert isinstance(place_any(ask, [large, small], [room(free=5)], [holder]), Wait), "a neighbour is only in the way"
    assert place_any(ask, [large, small], [room(total=8, free=8)], []).need == small  # type: ignore[union-attr]


def test_a_model_of_no_need_fits_where_nothing_is_free() -> None:
    assert isinstance(place(wanted(0), [room(free=-3)], [resident(busy=1)]), Fits)
