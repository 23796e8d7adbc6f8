"""How often models are switched on two devices over recorded traces, beside the least that an oracle would need.

The traces and the program that wrote them lie in `traces/`. Time is played: a load takes `LOAD_S`, an answer
`ANSWER_S`.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from worker.demandrate import DemandRates
from worker.placement import place
from worker.plans import DeviceRoom, Evict, Fits, Need, Resident, Wanted, Yield

TRACES = Path(__file__).parent / "traces"
DEVICES = ("cuda:0", "cuda:1")
GIB = 1 << 30
NEED, FREE = Need(10 * GIB), 16 * GIB
LOAD_S, ANSWER_S, SLOTS, LOOK_S = 8.0, 1.5, 4, 0.5


def read(name: str) -> list[tuple[float, str]]:
    rows = (line.split() for line in (TRACES / f"{name}.txt").read_text(encoding="ascii").splitlines())
    return [(float(at), model) for at, model in rows]


def least_loads(models: list[str], places: int) -> int:
    """Belady's rule: the model that is asked for again last goes. No rule loads less for requests in this order."""
    later: dict[str, deque[int]] = {}
    for index, model in enumerate(models):
        later.setdefault(model, deque()).append(index)
    loaded: set[str] = set()
    loads = 0
    for model in models:
        later[model].popleft()
        if model in loaded:
            continue
        loads += 1
        if len(loaded) == places:
            loaded.discard(max(loaded, key=lambda each: later[each][0] if later[each] else len(models)))
        loaded.add(model)
    return loads


@dataclass
class Loaded:
    """An engine of the played node."""

    engine: str
    model: str
    device: str
    ready_at: float
    busy: int = 0
    idle_since: float = 0.0
    served: bool = False
    yielding: bool = False


@dataclass
class Node:
    """A node played through: what keeper and dispatcher do, with `place` deciding."""

    now: float = 0.0
    loads: int = 0
    answered: int = 0
    longest_s: float = 0.0
    engines: dict[str, Loaded] = field(default_factory=dict)
    waiting: dict[str, deque[float]] = field(default_factory=dict)
    demand: DemandRates = field(default_factory=DemandRates)
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def play(self, trace: list[tuple[float, str]]) -> None:
        for at, model in trace:
            self.after(at, lambda model=model: self.asked(model))
        while self.events:
            self.now, _, happen = heapq.heappop(self.events)
            happen()
            self.decide()

    def after(self, at: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (at, next(self.numbers), happen))

    def asked(self, model: str) -> None:
        self.waiting.setdefault(model, deque()).append(self.now)

    def decide(self) -> None:
        self.serve()
        yields: set[str] = set()
        for model in sorted(
            (each for each, line in self.waiting.items() if line), key=lambda each: self.waiting[each][0]
        ):
            if any(each.model == model for each in self.engines.values()):
                continue
            plan = place(
                Wanted(model, NEED, waited_s=self.now - self.waiting[model][0]), self.rooms(), self.residents()
            )
            if isinstance(plan, Fits | Evict):
                self.load(model, plan)
            elif isinstance(plan, Yield):
                yields.update(plan.engines)
        for name, each in self.engines.items():
            each.yielding = name in yields
        if any(self.waiting.values()) and not any(at <= self.now + LOOK_S for at, _, _ in self.events[:1]):
            self.after(self.now + LOOK_S, lambda: None)

    def serve(self) -> None:
        for each in self.engines.values():
            line = self.waiting.get(each.model)
            while line and not each.yielding and each.ready_at <= self.now and each.busy < SLOTS:
                self.longest_s = max(self.longest_s, self.now - line.popleft())
                self.demand.add(each.model, self.now)
                each.busy += 1
                each.served = True
                self.after(self.now + ANSWER_S, lambda each=each: self.done(each))

    def done(self, each: Loaded) -> None:
        each.busy -= 1
        each.idle_since = self.now
        self.answered += 1

    def load(self, model: str, plan: Fits | Evict) -> None:
        for victim in plan.victims if isinstance(plan, Evict) else ():
            assert not self.engines.pop(victim).busy
        name = f"engine-{next(self.numbers)}"
        self.loads += 1
        self.engines[name] = Loaded(name, model, plan.devices[0], self.now + LOAD_S, idle_since=self.now + LOAD_S)
        self.after(self.now + LOAD_S, lambda: None)

    def rooms(self) -> list[DeviceRoom]:
        taken = {each.device for each in self.engines.values()}
        return [DeviceRoom(name, FREE - (name in taken) * NEED.spread_bytes, FREE) for name in DEVICES]

    def residents(self) -> list[Resident]:
        return [self.resident(each) for each in self.engines.values()]

    def resident(self, each: Loaded) -> Resident:
        return Resident(
            each.engine,
            each.model,
            (each.device,),
            {each.device: NEED.spread_bytes},
            state="ready" if each.ready_at <= self.now else "starting",
            busy=each.busy,
            ready_s=max(self.now - each.ready_at, 0.0),
            idle_s=max(self.now - each.idle_since, 0.0),
            reload_s=LOAD_S,
            demand_per_s=self.demand.per_s(each.model, self.now),
            served=each.served,
            yielding=each.yielding,
        )


@pytest.mark.parametrize("name", ["turns", "bursts", "mixed"])
def test_models_are_switched_at_most_a_fifth_more_than_an_oracle_would(name: str) -> None:
    trace = read(name)
    node = Node()
    node.play(trace)
    least = least_loads([model for _, model in trace], len(DEVICES))
    assert node.answered == len(trace)
    assert node.loads <= 1.2 * least
    assert node.longest_s < 150
