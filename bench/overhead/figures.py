"""From samples to figures: per load and way the median over the rounds with the least and the most. Nothing is read.

Ratios are made inside each round, between runs that lie seconds apart, and only then is the median taken: what the
machine does meanwhile meets both sides of a ratio.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.overhead.load import Sample

Reading = Callable[[Sample], float]


@dataclass(frozen=True, slots=True)
class Figure:
    """The median of the rounds, and between what they lie."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure | None:
        """None where nothing was seen."""
        known = sorted(value for value in values if not math.isnan(value))
        return cls(statistics.median(known), known[0], known[-1]) if known else None


class Samples:
    """The samples of one load, by way and round."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_way: dict[str, dict[int, Sample]] = {}
        for sample in samples:
            self._by_way.setdefault(sample.way, {})[sample.round] = sample

    @property
    def ways(self) -> list[str]:
        return list(self._by_way)

    def of(self, way: str) -> list[Sample]:
        return list(self._by_way.get(way, {}).values())

    def figure(self, way: str, reading: Reading) -> Figure | None:
        return Figure.of(map(reading, self.of(way)))

    def pairs(self, way: str, other: str) -> list[tuple[Sample, Sample]]:
        """The two ways' samples of the same round."""
        theirs = self._by_way.get(other, {})
        return [(sample, theirs[number]) for number, sample in self._by_way.get(way, {}).items() if number in theirs]

    def ratio(self, way: str, reading: Reading, other: str, others_reading: Reading | None = None) -> Figure | None:
        """`way` ÷ `other`, round by round; rounds whose divisor is nothing are left out."""
        read = others_reading or reading
        return Figure.of(reading(mine) / read(theirs) for mine, theirs in self.pairs(way, other) if read(theirs) > 0)

    def added(self, way: str, reading: Reading, other: str) -> Figure | None:
        """`way` less `other`, round by round."""
        return Figure.of(reading(mine) - reading(theirs) for mine, theirs in self.pairs(way, other))


def first_ms(sample: Sample) -> float:
    """Time to the first chunk: the median of the run."""
    return sample.seen.first_ms.p50


def delay_ms(sample: Sample) -> float:
    """From the engine's write to the client's read: the median of the run."""
    return sample.seen.delay_ms.p50


def chunks_per_s(sample: Sample) -> float:
    return sample.seen.chunks_per_s


def per_cpu_s(*names: str) -> Reading:
    """Chunks for each CPU second of the named groups."""
    return lambda sample: sample.chunks_per_cpu_s(*names)


def between(sample: Sample) -> float:
    """Chunks for each CPU second of everything between client and engine; 0 where there is nothing."""
    return sample.chunks_per_cpu_s(*sample.between) if sample.between else 0.0


def rss_mib(name: str) -> Reading:
    """Resident memory of one group at the end of the window."""
    return lambda sample: sample.cost.rss_mib[name]


def faults(samples: Sequence[Sample]) -> int:
    """What must not happen, over all samples."""
    return sum(sample.seen.faults for sample in samples)
