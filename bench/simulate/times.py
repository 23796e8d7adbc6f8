"""How long things take, as a person writes it: `fixed:0.5`, `lognormal:0.4:1.0`, `exponential:2`, `per-gib:0.3`."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer

GIB: Final = 1 << 30
_FIGURES: Final = {"fixed": 1, "exponential": 1, "per-gib": 1, "lognormal": 2}


@dataclass(frozen=True, slots=True)
class Times:
    """A distribution of seconds.

    `lognormal:MEAN:SIGMA` has the mean of its own values (not of their logarithms) and the sigma of the logarithms;
    `per-gib:S` takes S seconds for each GiB of model file, and is otherwise fixed.
    """

    kind: str
    mean_s: float
    sigma: float = 0.0

    @classmethod
    def parse(cls, text: str | float) -> Times:
        """A bare number is fixed. Raises `ValueError`, which says what can be written."""
        kind, _, rest = (f"fixed:{text}" if _is_number(text) else str(text)).partition(":")
        figures = rest.split(":")
        if kind not in _FIGURES or len(figures) != _FIGURES[kind] or not all(map(_is_number, figures)):
            raise ValueError(f"{text!r}: write fixed:S, exponential:MEAN, lognormal:MEAN:SIGMA or per-gib:S")
        mean_s, sigma = float(figures[0]), float(figures[1]) if len(figures) > 1 else 0.0
        if mean_s < 0 or sigma < 0:
            raise ValueError(f"{text!r}: times and spreads are not below 0")
        return cls(kind, mean_s, sigma)

    def draw(self, dice: random.Random, size_bytes: int = 0) -> float:
        """The next value in seconds."""
        if self.kind == "lognormal" and self.mean_s > 0:
            return dice.lognormvariate(math.log(self.mean_s) - self.sigma**2 / 2, self.sigma)
        if self.kind == "exponential" and self.mean_s > 0:
            return dice.expovariate(1 / self.mean_s)
        return self.mean_s * size_bytes / GIB if self.kind == "per-gib" else self.mean_s

    def text(self) -> str:
        """As it is written."""
        figures = (self.mean_s, self.sigma) if self.kind == "lognormal" else (self.mean_s,)
        return ":".join((self.kind, *(f"{figure:g}" for figure in figures)))


def _is_number(text: str | float) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _parsed(value: object) -> object:
    return Times.parse(value) if isinstance(value, str | int | float) else value


Duration = Annotated[Times, BeforeValidator(_parsed), PlainSerializer(Times.text, return_type=str)]
"""`Times` as a field of settings."""
