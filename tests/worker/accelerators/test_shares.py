"""Shares: what a node has, keeps, gives and has left, by kind of resource."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.node import Device
from worker.accelerators.shares import Slot, amount, slots

GIB = 1 << 30
NAMES = ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
amounts = st.decimals(min_value=0, max_value=100, places=3)
tables = st.dictionaries(st.sampled_from(NAMES), amounts, min_size=1)
quanta = st.sampled_from([Decimal(1), Decimal("0.25"), Decimal("0.01"), Decimal(3)])


def device(name: str, total: int = 24 * GIB, **other: Any) -> Device:
    backend = name.partition(":")[0]
    return Device(device=name, backend=backend, name=name, memory_total_bytes=total, memory_free_bytes=total, **other)


def slot(*rooms: int, quantum: int = 1) -> Slot:
    totals = {name: Decimal(room) for name, room in zip(NAMES, rooms, strict=False)}
    return Slot("cuda.mem", totals, Decimal(quantum))


@settings(max_examples=300, deadline=None)
@given(tables, tables, tables, quanta)
def test_no_more_is_available_than_there_is(
    totals: dict[str, Decimal], reserved: dict[str, Decimal], occupied: dict[str, Decimal], quantum: Decimal
) -> None:
    held = {name: min(occupied.get(name, Decimal(0)), total) for name, total in totals.items()}
    share = Slot("x.mem", totals, quantum, reserved, held).share()
    assert share.available % quantum == 0
    assert share.available >= 0
    assert share.occupied + share.available <= share.total


def test_memory_is_counted_in_aligned_bytes() -> None:
    assert slot(100, quantum=16).available("cuda:0") == 96


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
