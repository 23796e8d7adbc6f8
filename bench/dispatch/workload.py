"""A load: when requests come and how long each one takes. Drawn once from a seed, and the same for every policy."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final

MODEL: Final = "sim"
TOKENS_PER_S: Final = 1000.0
"""Of the simulated engines here: a request's time in an engine is its `max_tokens` in milliseconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: seconds after the start, and seconds in an engine."""

    number: int
    at_s: float
    service_s: float
    model: str = MODEL

    @property
    def tokens(self) -> int:
        """What makes it take that long."""
        return max(1, round(self.service_s * TOKENS_PER_S))


@dataclass(frozen=True, slots=True)
class Shape:
    """Poisson arrivals for so many slots at a share `load` of what they can do; lognormal service times."""

    load: float
    slots: int
    mean_s: float
    sigma: float
    seconds: float

    @property
    def rate_per_s(self) -> float:
        """Requests a second."""
        return self.load * self.slots / self.mean_s

    def draw(self, seed: int) -> list[Request]:
        """The requests of one round, in the order of their times."""
        arrivals, services = random.Random(f"{seed}/arrivals"), random.Random(f"{seed}/services")
        centre = math.log(self.mean_s) - self.sigma**2 / 2
        requests: list[Request] = []
        at_s = arrivals.expovariate(self.rate_per_s)
        while at_s < self.seconds:
            requests.append(Request(len(requests), at_s, services.lognormvariate(centre, self.sigma)))
            at_s += arrivals.expovariate(self.rate_per_s)
        return requests
