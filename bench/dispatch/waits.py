"""Waits in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Waits:
    """Of many waits, in milliseconds. Nothing is subtracted."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Waits:
        """Not a number where there is nothing."""
        ordered = sorted(value * 1000 for value in seconds)
        if not ordered:
            return cls(0, math.nan, math.nan, math.nan, math.nan, math.nan)
        mean = math.fsum(ordered) / len(ordered)
        p50, p90, p99 = (quantile(ordered, share) for share in (0.5, 0.9, 0.99))
        return cls(len(ordered), mean, p50, p90, p99, ordered[-1])

    def as_json(self) -> dict[str, float]:
        """Rounded to a microsecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that a `share` of them do not pass: the nearest rank, no interpolation."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]
