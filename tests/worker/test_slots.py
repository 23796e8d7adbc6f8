"""Slots by engine: whose slot a request gets, and counts that stay right whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from worker.slots import Slots, engine_order


class Clock:
    """Time in the test's hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def slots_of(*totals: int, limit: int | None = None, devices: tuple[str, ...] = ()) -> Slots:
    """Engines `e-0`, `e-1`… of model `m`, ready, each on its own device unless `devices` are given."""
    slots = Slots(Clock(), device_limit=limit)
    for number, total in enumerate(totals):
        slots.add(f"e-{number}", "m", total, devices or (f"gpu:{number}",))
        slots.set_ready(f"e-{number}", True)
    return slots


def test_the_engine_with_most_free_slots_is_picked() -> None:
    slots = slots_of(1, 3, 2)
    assert slots.pick("m") == "e-1"
    slots.take("e-1", 1)
    slots.take("e-1", 2)
    assert slots.pick("m") == "e-2"


def test_of_equals_the_first_is_picked_by_number() -> None:
    slots = Slots(Clock())
    for engine in ("engine-10", "engine-2"):
        slots.add(engine, "m", 1)
        slots.set_ready(engine, True)
    assert slots.pick("m") == "engine-2"
    assert sorted(["engine-10", "engine-9"], key=engine_order) == ["engine-9", "engine-10"]


def test_the_preferred_engine_is_picked_while_it_has_a_slot() -> None:
    slots = slots_of(1, 3)
    assert slots.pick("m", "e-0") == "e-0"
    slots.take("e-0", 1)
    assert slots.pick("m", "e-0") == "e-1"
    assert slots.pick("m", "nobody") == "e-1"


def test_an_engine_that_yields_has_no_free_slot_for_new_work() -> None:
    told: list[str] = []
    slots = Slots(Clock(), on_yield=told.append)
    slots.add("e-0", "m", 2)
    slots.set_ready("e-0", True)
    slots.take("e-0", 1)
    slots.set_yielding("e-0", True)
    assert (slots.free("m"), slots.pick("m"), slots.busy("e-0")) == (0, None, 1)
    slots.set_yielding("e-0", False)
    assert slots.free("m") == 1
    assert told == ["m", "m"]


def test_engines_of_without_are_not_picked() -> None:
    assert slots_of(1, 3).pick("m", None, {"e-1"}) == "e-0"
    assert slots_of(1).pick("m", "e-0", {"e-0"}) is None


def test_a_closed_node_has_no_slots() -> None:
    slots = slots_of(4)
    slots.closed = True
    assert (slots.free("m"), slots.pick("m")) == (0, None)


def test_what_is_pending_on_a_device_bounds_all_its_engines() -> None:
    slots = Slots(Clock(), device_limit=2)
    for engine, model in (("e-0", "a"), ("e-1", "b")):
        slots.add(engine, model, 4, ("gpu:0",))
        slots.set_ready(engine, True)
    assert (slots.free("a"), slots.free("b")) == (2, 2)
    slots.take("e-0", 1)
    slots.take("e-1", 2)
    assert (slots.free("a"), slots.pick("b")) == (0, None)
    assert not slots.may_wait("a")


def test_engines_of_one_model_share_the_room_of_their_device() -> None:
    assert slots_of(4, 4, limit=3, devices=("gpu:0",)).free("m") == 3
    assert slots_of(4, 4, limit=3).free("m") == 6


def test_requests_that_wait_for_a_model_count_on_its_devices() -> None:
    waiting = {"a": 1, "b": 0}
    slots = Slots(Clock(), device_limit=1, waiting=lambda model: waiting[model])
    slots.add("e-0", "a", 4, ("gpu:0",))
    slots.add("e-1", "b", 4, ("gpu:0",))
    slots.set_ready("e-0", True)
    slots.set_ready("e-1", True)
    assert (slots.free("a"), slots.free("b")) == (1, 0)


def test_taking_a_slot_that_is_not_there_is_an_error() -> None:
    slots = slots_of(1)
    slots.take("e-0", 1)
    with pytest.raises(RuntimeError):
        slots.take("e-0", 2)
    with pytest.raises(RuntimeError):
        slots.take("stranger", 1)


def test_an_engine_is_idle_since_its_last_request_ended() -> None:
    clock = Clock()
    slots = Slots(clock)
    slots.add("e-0", "m", 1)
    slots.set_ready("e-0", True)
    slots.take("e-0", 1)
    assert slots.idle_since("e-0") is None
    clock.now = 5.0
    slots.release("e-0", 1)
    assert slots.idle_since("e-0") == 5.0
    assert slots.idle_since("stranger") is None


class Life(RuleBasedStateMachine):
    """Engines come, go and yield while requests take and release slots in any order."""

    engines = Bundle("engines")
    seats = Bundle("seats")

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(Clock(), device_limit=None)
        self.busy: dict[str, set[int]] = {}
        self.totals: dict[str, int] = {}
        self.open: dict[str, bool] = {}
        self.yielding: dict[str, bool] = {}
        self.models: dict[str, str] = {}
        self.number = 0

    @rule(target=engines, number=st.integers(0, 4), model=st.sampled_from("ab"), total=st.integers(1, 3))
    def add(self, number: int, model: str, total: int) -> str:
        engine = f"engine-{number}"
        self.slots.add(engine, model, total)
        self.busy[engine], self.totals[engine], self.models[engine] = set(), total, model
        self.open[engine] = self.yielding[engine] = False
        return engine

    @rule(engine=engines)
    def remove(self, engine: str) -> None:
        self.slots.remove(engine)
        self.busy.pop(engine, None)

    @rule(engine=engines, ready=st.booleans())
    def turn(self, engine: str, ready: bool) -> None:
        if engine in self.busy:
            self.slots.set_ready(engine, ready)
            self.open[engine] = ready

    @rule(engine=engines, on=st.booleans())
    def give_way(self, engine: str, on: bool) -> None:
        self.slots.set_yielding(engine, on)
        if engine in self.busy:
            self.yielding[engine] = on

    @rule(target=seats, model=st.sampled_from("ab"), prefer=st.one_of(st.none(), engines))
    def take(self, model: str, prefer: str | None) -> tuple[str, int]:
        engine = self.slots.pick(model, prefer)
        if engine is None:
            assert self.slots.free(model) == 0
            return ("nobody", 0)
        assert self._free(engine) > 0
        assert prefer not in self.busy or engine == prefer or self.models[prefer] != model or not self._free(prefer)
        self.number += 1
        self.slots.take(engine, self.number)
        self.busy[engine].add(self.number)
        return engine, self.number

    @rule(seat=consumes(seats), again=st.booleans())
    def release(self, seat: tuple[str, int], again: bool) -> None:
        engine, number = seat
        for _ in range(2 if again else 1):
            self.slots.release(engine, number)
        self.busy.get(engine, set()).discard(number)

    @precondition(lambda self: self.busy)
    @rule()
    def drain(self) -> None:
        self.slots.closed = True
        assert all(self.slots.pick(model) is None for model in "ab")
        self.slots.closed = False

    def _free(self, engine: str) -> int:
        if not self.open[engine] or self.yielding[engine]:
            return 0
        return self.totals[engine] - len(self.busy[engine])

    @invariant()
    def counts_agree(self) -> None:
        assert self.slots.busy_total == sum(map(len, self.busy.values()))
        for model in "ab":
            mine = [engine for engine in self.busy if self.models[engine] == model]
            assert self.slots.free(model) == sum(map(self._free, mine))
            assert self.slots.serves(model) == bool(mine)
            assert self.slots.totals(model) == (sum(self.totals[e] for e in mine), sum(len(self.busy[e]) for e in mine))


TestLife = Life.TestCase
