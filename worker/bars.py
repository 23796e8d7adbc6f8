"""Models that failed on a device again and again are not tried there for a while, each time longer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

BAR_LEAST_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Bar:
    """Why, and for how long yet."""

    reason: str
    left_s: float


class Bars:
    """Owner of what is barred. `most_s` is the longest bar."""

    def __init__(self, clock: Callable[[], float], most_s: float) -> None:
        self._clock = clock
        self._most_s = most_s
        self._set: dict[tuple[str, str], tuple[str, float, int]] = {}

    def put(self, model: str, devices: tuple[str, ...], reason: str, least_s: float = 0.0) -> float:
        """A model failed on these devices; for how many seconds it is barred there."""
        times = 1 + max((self._set[model, each][2] for each in devices if (model, each) in self._set), default=0)
        bar_s = max(min(BAR_LEAST_S * 2 ** (times - 1), self._most_s), least_s)
        for each in devices:
            self._set[model, each] = (reason, self._clock() + bar_s, times)
        return bar_s

    def lift(self, model: str, devices: tuple[str, ...] = ()) -> None:
        """It works, or somebody has seen to it. No devices: everywhere."""
        for key in [key for key in self._set if key[0] == model and (not devices or key[1] in devices)]:
            del self._set[key]

    def of(self, model: str, device: str) -> Bar | None:
        """The bar of now, if there is one."""
        reason, until, _ = self._set.get((model, device), ("", 0.0, 0))
        left_s = until - self._clock()
        return Bar(reason, left_s) if reason and left_s > 0 else None
