"""Shares: whatever is asked for in whatever order, nothing is given twice and nothing is lost."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.node import Device
from worker.accelerators.shares import Allocation, NotEnough, Slot, amount, slots

GIB = 1 << 30
NAMES = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
amounts = st.decimals(min_value=0, max_value=100, places=3)
tables = st.dictionaries(st.sampled_from(NAMES), amounts, min_size=1)
plans = st.sampled_from(["fill", "evenly"])
quanta = st.sampled_from([Decimal(1), Decimal("0.25"), Decimal("0.01"), Decimal(3)])


def device(name: str, total: int = 24 * GIB, **other: Any) -> Device:
    backend = name.partition(":")[0]
    return Device(device=name, backend=backend, name=name, memory_total_bytes=total, memory_free_bytes=total, **other)


def slot(*rooms: int, quantum: int = 1) -> Slot:
    totals = {name: Decimal(room) for name, room in zip(NAMES, rooms, strict=False)}
    return Slot("cuda.mem", totals, Decimal(quantum))


def given_by(one: Slot, wanted: int, strategy: Any) -> dict[str, int]:
    return {name: int(value) for name, value in one.allocate(Decimal(wanted), strategy)[1].amounts.items()}


@settings(max_examples=300, deadline=None)
@given(tables, tables, quanta, st.lists(st.tuples(amounts, plans, st.booleans()), max_size=30))
def test_nothing_is_ever_given_twice(
    totals: dict[str, Decimal], reserved: dict[str, Decimal], quantum: Decimal, asks: list[tuple[Decimal, Any, bool]]
) -> None:
    one = Slot("x.mem", totals, quantum, reserved)
    empty, out = one.share(), list[Allocation]()
    for wanted, strategy, give_back in asks:
        if give_back and out:
            one = one.release(out.pop(0))
        before = one.share().available
        try:
            one, allocation = one.allocate(wanted, strategy)
        except NotEnough:
            assert wanted > before - quantum
        except ValueError:
            assert wanted <= 0 or (quantum == 1 and wanted % 1)
        else:
            assert wanted <= allocation.total < wanted + quantum
            out.append(allocation)
        for name in one.totals:
            held = one.occupied.get(name, Decimal(0))
            assert held == sum((each.amounts.get(name, Decimal(0)) for each in out), Decimal(0))
            assert held <= max(one.totals[name] - reserved.get(name, Decimal(0)), Decimal(0))
        share = one.share()
        assert share.occupied + share.available <= share.total
    for allocation in out:
        one = one.release(allocation)
    assert one.share() == empty


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(1, 200))
def test_evenly_is_as_even_as_the_rooms_allow(rooms: list[int], wanted: int) -> None:
    if wanted > sum(rooms):
        with pytest.raises(NotEnough):
            slot(*rooms).allocate(Decimal(wanted), "evenly")
        return
    taken = given_by(slot(*rooms), wanted, "evenly")
    parts = [taken.get(name, 0) for name, _ in zip(NAMES, rooms, strict=False)]
    short = [part for part, room in zip(parts, rooms, strict=True) if part < room]
    assert sum(parts) == wanted
    assert not short or max(parts) - min(short) <= 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(1, 200))
def test_fill_uses_the_fewest_devices(rooms: list[int], wanted: int) -> None:
    if wanted > sum(rooms):
        return
    largest = sorted(rooms, reverse=True)
    fewest = next(count for count in range(1, 5) if sum(largest[:count]) >= wanted)
    assert len(given_by(slot(*rooms), wanted, "fill")) == fewest


def test_fill_takes_the_fullest_that_has_the_room() -> None:
    assert given_by(slot(24, 8, 12), 10, "fill") == {"cuda:2": 10}
    assert given_by(slot(24, 8, 12), 30, "fill") == {"cuda:0": 24, "cuda:2": 6}


def test_evenly_takes_the_same_of_each() -> None:
    assert given_by(slot(24, 24), 20, "evenly") == {"cuda:0": 10, "cuda:1": 10}
    assert given_by(slot(24, 4), 20, "evenly") == {"cuda:0": 16, "cuda:1": 4}


def test_only_the_devices_asked_for_are_used() -> None:
    taken = slot(24, 24).allocate(Decimal(20), "evenly", among=["cuda:1"])[1]
    assert dict(taken.amounts) == {"cuda:1": 20}


def test_memory_is_given_in_aligned_bytes() -> None:
    assert given_by(slot(100, quantum=16), 17, "fill") == {"cuda:0": 32}
    assert slot(100, quantum=16).available("cuda:0") == 96


@pytest.mark.parametrize("wanted", ["0", "-1", "NaN", "Infinity", "0.5"])
def test_an_amount_that_is_none_is_refused(wanted: str) -> None:
    with pytest.raises(ValueError, match=r"cuda\.mem"):
        slot(10).allocate(Decimal(wanted))


def test_what_was_not_given_cannot_be_given_back() -> None:
    full, allocation = slot(10).allocate(Decimal(4))
    for wrong in (Allocation("cpu", allocation.amounts), Allocation("cuda.mem", {"cuda:0": Decimal(5)})):
        with pytest.raises(ValueError, match="was not given"):
            full.release(wrong)
    with pytest.raises(ValueError, match="was not given"):
        full.release(allocation).release(allocation)


def test_a_node_has_its_slots() -> None:
    devices = [device("cpu:0", 64 * GIB), device("cuda:0"), device("cuda:1"), device("rocm:0", reason="gone")]
    found = slots([*devices, device("metal:0", unified_memory=True)], 16, {"cpu": "1", "mem": "1G", "cuda.mem": "5%"})
    assert sorted(found) == ["cpu", "cuda.device", "cuda.mem", "mem", "metal.device"]
    assert (found["cpu"].share().total, found["cpu"].share().available) == (16, 15)
    assert found["mem"].share().available == 63 * GIB
    memory = found["cuda.mem"].share()
    assert memory.total == 48 * GIB
    assert memory.reserved == Decimal(48 * GIB) / 20
    assert 0 <= memory.total - memory.reserved - memory.available < 2 * (16 << 20)
    assert found["cuda.device"].share().available == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("0.5", Decimal("0.5")), ("1G", GIB), ("16MiB", 16 << 20), ("5%", 10), (" 3 KB ", 3072)],
)
def test_amounts_are_read(text: str, value: Any) -> None:
    assert amount(text, Decimal(200)) == value


@pytest.mark.parametrize("text", ["", "-1", "1X", "G", "1e9", "9" * 30, "5 %%"])
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount"):
        amount(text)
