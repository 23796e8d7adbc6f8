"""Which bytes of a file are there: a set of half-open intervals. Plain."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Intervals:
    """Intervals that touch are one. The calls take time in the number of gaps, which is small."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, given: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in given:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        """Put in `start` to `end`, the latter not included."""
        if start >= end:
            return
        first, last = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def reach(self, start: int) -> int:
        """The end of what is there without a gap from `start` on; `start` itself if its byte is missing."""
        at = bisect_right(self._starts, start) - 1
        return max(start, self._ends[at]) if at >= 0 else start

    def missing(self, end: int) -> Iterator[tuple[int, int]]:
        """The gaps below `end`, in order."""
        at = 0
        for start, stop in self:
            if at < min(start, end):
                yield at, min(start, end)
            at = max(at, stop)
        if at < end:
            yield at, end

    def cut(self, end: int) -> Intervals:
        """What of it lies below `end`."""
        return Intervals((start, min(stop, end)) for start, stop in self if start < end)
