"""What became of one figure while it was watched: a few numbers, however long that is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moved:
    """The figures of now."""

    current: float
    min: float
    max: float
    sum: float
    avg: float
    diff: float
    """Between the last two values; 0 while there is only one."""
    rate: float
    """`diff` a second; 0 while there is only one value, or two of the same moment."""
    count: int


class MovingStatistics:
    """Takes values as they come, each with its time in seconds on one clock; keeps the last two and the sums."""

    __slots__ = ("_at", "_before", "_before_at", "_carry", "_count", "_current", "_max", "_min", "_sum")

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._carry = 0.0
        self._current = self._before = 0.0
        self._at = self._before_at = 0.0
        self._min, self._max = float("inf"), float("-inf")

    def update(self, value: float, at: float) -> None:
        """One more value."""
        if self._count == 0:
            self._current, self._at = value, at
        self._before, self._before_at = self._current, self._at
        self._current, self._at = value, at
        self._min, self._max = min(self._min, value), max(self._max, value)
        self._add(value)
        self._count += 1

    def _add(self, value: float) -> None:
        """Neumaier's sum: months of large values lose none of the small ones."""
        total = self._sum + value
        larger, smaller = (self._sum, value) if abs(self._sum) >= abs(value) else (value, self._sum)
        self._carry += (larger - total) + smaller
        self._sum = total

    @property
    def moved(self) -> Moved | None:
        """The figures; `None` while there was no value."""
        if self._count == 0:
            return None
        total = self._sum + self._carry
        # by rounding alone an average could leave the range of what it is the average of
        average = min(max(total / self._count, self._min), self._max)
        return Moved(self._current, self._min, self._max, total, average, self.diff, self.rate or 0.0, self._count)

    @property
    def diff(self) -> float:
        """Between the last two values."""
        return self._current - self._before

    @property
    def rate(self) -> float | None:
        """`diff` a second; `None` while it cannot be told."""
        passed_s = self._at - self._before_at
        return self.diff / passed_s if passed_s > 0 else None
