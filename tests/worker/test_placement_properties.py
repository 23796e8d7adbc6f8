"""What no plan ever does, whatever the node looks like."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.placement import place
from worker.plans import Cannot, DeviceRoom, Evict, Fits, Need, Plan, Resident, Wait, Wanted, Yield
from worker.ways import fits

DEVICES = ("cuda:0", "cuda:1", "cuda:2")
STATES = ("starting", "ready", "stopping", "crashed")

amounts = st.integers(0, 100)
needs = st.builds(Need, st.integers(1, 160), st.integers(0, 20))


@st.composite
def residents(draw: st.DrawFn) -> list[Resident]:
    found: list[Resident] = []
    for number in range(draw(st.integers(0, 6))):
        devices = tuple(draw(st.lists(st.sampled_from(DEVICES), min_size=1, max_size=3, unique=True)))
        found.append(
            Resident(
                f"engine-{number}",
                draw(st.sampled_from("abcm")),
                devices,
                {device: draw(st.integers(0, 50)) for device in devices},
                state=draw(st.sampled_from(STATES)),
                busy=draw(st.integers(0, 2)),
                waiting=draw(st.integers(0, 1)),
                pinned=draw(st.booleans()),
                ready_s=draw(st.floats(0, 200)),
                idle_s=draw(st.floats(0, 200)),
                reload_s=draw(st.floats(0, 50)),
                demand_per_s=draw(st.floats(0, 2)),
                served=draw(st.booleans()),
                yielding=draw(st.booleans()),
            )
        )
    return found


@st.composite
def rooms(draw: st.DrawFn) -> list[DeviceRoom]:
    count = draw(st.integers(1, 3))
    pressures = st.floats(0, 1)
    totals = [draw(st.integers(50, 150)) for _ in range(count)]
    return [
        DeviceRoom(name, draw(st.integers(-10, total)), total, None, draw(pressures))
        for name, total in zip(DEVICES, totals, strict=False)
    ]


wants = st.builds(
    Wanted,
    st.just("m"),
    needs,
    split=st.none() | st.integers(1, 3),
    waited_s=st.floats(0, 300),
    lenient=st.booleans(),
)
SEEN = settings(max_examples=150, deadline=None)


def freed(plan: Fits | Evict, here: list[DeviceRoom], engines: list[Resident]) -> list[int]:
    gone = [each for each in engines if isinstance(plan, Evict) and each.engine in plan.victims]
    known = {room.device: room for room in here}
    return [known[name].free_bytes + sum(each.held_bytes.get(name, 0) for each in gone) for name in plan.devices]


@SEEN
@given(wants, rooms(), residents())
def test_nobody_busy_pinned_or_on_its_way_is_ever_stopped(want, here, engines) -> None:
    plan = place(want, here, engines)
    known = {each.engine: each for each in engines}
    for name in plan.victims if isinstance(plan, Evict) else ():
        assert not (known[name].busy or known[name].pinned)
        assert known[name].state in ("ready", "crashed")
    for name in plan.engines if isinstance(plan, Yield) else ():
        assert known[name].busy
        assert not known[name].pinned


@SEEN
@given(wants, rooms(), residents())
def test_no_device_is_given_more_than_it_has(want, here, engines) -> None:
    plan = place(want, here, engines)
    if isinstance(plan, Fits | Evict) and not want.lenient:
        assert fits(want.need, freed(plan, here, engines))
        assert want.split in (None, len(plan.devices))
        taken = {device for each in engines if each.model == "m" for device in each.devices}
        assert taken.isdisjoint(plan.devices)


@SEEN
@given(wants, rooms(), residents())
def test_no_engine_is_stopped_that_could_have_stayed(want, here, engines) -> None:
    plan = place(want, here, engines)
    if isinstance(plan, Evict) and not want.lenient:
        for spared in plan.victims:
            fewer = replace(plan, victims=tuple(each for each in plan.victims if each != spared))
            assert not fits(want.need, freed(fewer, here, engines))


def rank(plan: Plan) -> int:
    """How dear a plan is: its cost, and what has none is dearer than all."""
    return plan.cost if isinstance(plan, Fits | Evict) else {Yield: 10, Wait: 11, Cannot: 12}[type(plan)]


@SEEN
@given(wants, rooms(), residents(), st.integers(0, 2), st.integers(1, 60))
def test_more_free_memory_never_costs_more(want, here, engines, which, more) -> None:
    want = replace(want, lenient=False)
    changed = list(here)
    room = changed[which % len(changed)]
    changed[which % len(changed)] = replace(room, free_bytes=room.free_bytes + more)
    assert rank(place(want, changed, engines)) <= rank(place(want, here, engines))


@SEEN
@given(wants, rooms(), residents(), st.randoms())
def test_the_same_node_gives_the_same_plan_in_whatever_order_it_is_told(want, here, engines, random) -> None:
    plan = place(want, here, engines)
    shuffled, mixed = list(engines), list(here)
    random.shuffle(shuffled)
    random.shuffle(mixed)
    again = place(want, mixed, shuffled)
    if isinstance(plan, Fits | Evict | Yield):
        assert again == plan or (isinstance(plan, Yield) and set(again.engines) == set(plan.engines))
    else:
        assert type(again) is type(plan)
