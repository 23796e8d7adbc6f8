"""Traces of requests for more models than there is room for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.dispatch.workload import Request

KINDS: Final = ("in-turn", "in-turn-5", "zipf")


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests, and how they are sent: `at_once` under way at a time, or, where that is 0, at their times."""

    name: str
    requests: tuple[Request, ...]
    at_once: int = 0

    @property
    def models(self) -> list[str]:
        """What is asked for, in the order of asking."""
        return [request.model for request in self.requests]


def trace(kind: str, models: Sequence[str], count: int, *, service_s: float, rate_per_s: float, seed: int) -> Trace:
    """One of `KINDS`. Raises `ValueError` for another."""
    if kind == "zipf":
        return Trace(kind, tuple(_zipf(models, count, service_s, rate_per_s, seed)))
    if kind not in KINDS:
        raise ValueError(f"no such trace: {kind}; there are {', '.join(KINDS)}")
    requests = (Request(number, 0.0, service_s, models[number % len(models)]) for number in range(count))
    return Trace(kind, tuple(requests), at_once=1 if kind == "in-turn" else 5)


def _zipf(models: Sequence[str], count: int, service_s: float, rate_per_s: float, seed: int) -> list[Request]:
    """Poisson arrivals; the n-th model is asked for 1/n as often as the first."""
    dice, at_s = random.Random(f"{seed}/zipf"), 0.0
    weights = [1 / rank for rank in range(1, len(models) + 1)]
    requests: list[Request] = []
    for number in range(count):
        at_s += dice.expovariate(rate_per_s)
        requests.append(Request(number, at_s, service_s, dice.choices(models, weights)[0]))
    return requests
