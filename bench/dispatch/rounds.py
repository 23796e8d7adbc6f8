"""One round: a workload is driven, and what the engines' journal says of it is held against the other policies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.dispatch import queues
from bench.dispatch.driver import Outcome, drive
from bench.dispatch.fleet import Fleet
from bench.dispatch.gateway import gateway
from bench.dispatch.line import line
from bench.dispatch.queues import Job
from bench.dispatch.waits import Waits
from bench.dispatch.workload import Request, Shape
from bench.processes import Cost, measure

SPARE_S: Final = 60.0
"""How much longer than the longest answer takes the last one is waited for."""


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was answered, in seconds after the first one was sent."""

    number: int
    sent_s: float
    began_s: float
    ended_s: float
    node: str

    @property
    def waited_s(self) -> float:
        """From being sent to its engine's start on it."""
        return self.began_s - self.sent_s

    @property
    def job(self) -> Job:
        """The same request for another policy."""
        return Job(self.sent_s, self.ended_s - self.began_s)


@dataclass(frozen=True, slots=True)
class Round:
    """What one round showed. `policies` has the waits of `puna` and of each other policy over the same requests."""

    way: str
    load: float
    number: int
    sent: int
    lost: int
    cut: int
    errors: dict[str, int]
    retried: int
    frozen_nodes: int
    policies: dict[str, Waits]
    cores: dict[str, float] = field(default_factory=dict[str, float])
    others_cores: float = 0.0

    def ratio(self, policy: str) -> float:
        """The waiting p99 of Puna ÷ that of the policy; infinite where nobody waits under it."""
        theirs = self.policies[policy].p99
        return self.policies["puna"].p99 / theirs if theirs > 0 else float("inf")

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        waits = {name: waits.as_json() for name, waits in self.policies.items()}
        known = {
            "way": self.way,
            "load": self.load,
            "round": self.number,
            "sent": self.sent,
            "lost": self.lost,
            "cut": self.cut,
        }
        known |= {"errors": self.errors, "retried": self.retried, "frozen_nodes": self.frozen_nodes}
        cores = {name: round(share, 3) for name, share in self.cores.items()}
        return known | {"waits_ms": waits, "cores": cores, "others_cores": round(self.others_cores, 3)}


async def run(fleet: Fleet, way: str, shape: Shape, number: int, *, seed: int, freeze: bool) -> Round:
    """Drive one round. With `freeze` the last group stops after a third of the time, until the end of the round."""
    requests = shape.draw(seed)
    before = measure(fleet.pids())
    group = fleet.groups[-1]
    stop = asyncio.get_running_loop().call_later(shape.seconds / 3, group.freeze) if freeze else None
    try:
        outcome = await _driven(fleet, way, requests)
    finally:
        if stop is not None:
            stop.cancel()
            group.thaw()
    cost = measure(fleet.pids()).since(before)
    served = matched(outcome, fleet.events(outcome.began_ns))
    nodes = fleet.nodes - (group.nodes if freeze else 0)
    return _round(way, shape.load, number, outcome, served, cost, (nodes, fleet.slots, fleet.nodes - nodes), seed)


async def _driven(fleet: Fleet, way: str, requests: Sequence[Request]) -> Outcome:
    patience_s = SPARE_S + max((request.service_s for request in requests), default=0.0)
    if way == "line":
        async with line(fleet.nats_url) as door:
            return await drive(door, requests, patience_s=patience_s)
    if fleet.gateway_port is None:
        raise ValueError("this fleet has no gateway")
    async with gateway(fleet.gateway_port) as http:
        return await drive(http, requests, patience_s=patience_s)


def matched(outcome: Outcome, events: Iterable[dict[str, Any]]) -> list[Served]:
    """Each answered request with the engine's work that answered it, in the order of sending."""
    begun: dict[tuple[str, int], int] = {}
    work: dict[int, tuple[str, int, int]] = {}
    for line_ in events:
        number, node, at_ns = line_.get("number"), line_.get("node", ""), line_["at"]
        if number is None:
            continue
        if line_["event"] == "begin":
            begun[node, number] = at_ns
        elif line_["event"] == "end" and (node, number) in begun:
            work[number] = (node, begun[node, number], at_ns)
    zero = outcome.began_ns
    served: list[Served] = []
    for number, fate in outcome.fates.items():
        if fate.answered and number in work:
            node, began, ended = work[number]
            served.append(Served(number, (fate.sent_ns - zero) / 1e9, (began - zero) / 1e9, (ended - zero) / 1e9, node))
    return sorted(served, key=lambda each: each.sent_s)


def _round(
    way: str,
    load: float,
    number: int,
    outcome: Outcome,
    served: Sequence[Served],
    cost: Cost,
    size: tuple[int, int, int],
    seed: int,
) -> Round:
    nodes, slots, frozen = size
    return Round(
        way=way,
        load=load,
        number=number,
        sent=len(outcome.fates),
        lost=outcome.lost,
        cut=outcome.cut,
        errors=outcome.errors,
        retried=sum(fate.tries > 1 for fate in outcome.fates.values()),
        frozen_nodes=frozen,
        policies=policies(served, nodes, slots, seed),
        cores={name: spent / cost.at_s for name, spent in cost.cpu_s.items()},
        others_cores=max(0.0, cost.machine_s - sum(cost.cpu_s.values())) / cost.at_s,
    )


def policies(served: Sequence[Served], nodes: int, slots: int, seed: int) -> dict[str, Waits]:
    """The waits of Puna as they were, and of the others as they would have been."""
    jobs = [each.job for each in served]
    return {
        "puna": Waits.of([each.waited_s for each in served]),
        "ideal": Waits.of(queues.central(jobs, nodes * slots)),
        "group": Waits.of(queues.random_group(jobs, nodes, slots, seed)),
        "heartbeats": Waits.of(queues.least_loaded(jobs, nodes, slots, seed)),
    }
