"""How much each model is asked for: requests a second, the old ones counting ever less."""

from __future__ import annotations

import math
from typing import Final

HALF_LIFE_S: Final = 600.0
"""Of 60, 150, 300, 600 and 1200 s this switched models least over the recorded traces, with 1200."""
_FORGOTTEN_PER_S: Final = 1e-6
"""Below this a model is not in demand any more."""


class DemandRates:
    """Requests a second of each model, decaying by half in `half_life_s`. All times are the caller's clock, in
    seconds."""

    def __init__(self, half_life_s: float = HALF_LIFE_S) -> None:
        self._decay = math.log(2) / half_life_s
        self._rates: dict[str, tuple[float, float]] = {}

    def add(self, model: str, now: float, requests: int = 1) -> None:
        """Requests of the model came. Each adds as much as makes a steady stream's rate come out."""
        self._rates[model] = (self.per_s(model, now) + requests * self._decay, now)

    def per_s(self, model: str, now: float) -> float:
        """The rate of now; 0 for a model that nobody asked for lately."""
        rate, at = self._rates.get(model, (0.0, now))
        found = rate * math.exp(-self._decay * max(now - at, 0.0))
        if found < _FORGOTTEN_PER_S:
            self._rates.pop(model, None)
            return 0.0
        return found
