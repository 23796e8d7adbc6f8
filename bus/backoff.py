"""How long to wait before the next try to reach the server. Plain: the clock and the dice are handed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_S: Final = 0.05
EAGER_S: Final = 0.15
EAGER_FOR_S: Final = 30.0
LONGEST_S: Final = 2.0


@dataclass(slots=True)
class Backoff:
    """Waits of one outage. A server that merely is not there yet is tried often for the first 30 s, so that a
    restart costs the fleet a fraction of a second; one that refuses us is tried at growing distances at once."""

    since_s: float
    tries: int = 0
    step_s: float = FIRST_S

    def next_s(self, *, now_s: float, dice: float, refused: bool) -> float:
        """The wait in seconds before the next try; `dice` is in 0..1, so that a fleet does not come back in step."""
        self.tries += 1
        if self.tries == 1:
            return FIRST_S * dice
        if not refused and now_s - self.since_s < EAGER_FOR_S:
            return EAGER_S * (0.3 + 0.7 * dice)
        self.step_s = min(self.step_s * 2, LONGEST_S)
        return self.step_s * (0.5 + 0.5 * dice)
