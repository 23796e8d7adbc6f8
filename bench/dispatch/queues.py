"""Waiting under other policies, computed exactly from what was recorded: nobody's overhead is in these.

Each function takes jobs (when it came, how long it took; in the order of coming) and gives their waits, in seconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

HEARTBEAT_S: Final = 1.0


class Job(NamedTuple):
    """One request: when it came and how long it was in an engine, in seconds."""

    at_s: float
    service_s: float


def central(jobs: Sequence[Job], slots: int) -> list[float]:
    """One line for all slots, first come first served: no policy that does not know service times does better."""
    line = _Line(slots)
    return [line.wait(job) for job in jobs]


def random_group(jobs: Sequence[Job], nodes: int, slots: int, seed: int) -> list[float]:
    """A queue group: each request goes to a node by chance and waits in that node's own line."""
    dice = random.Random(seed)
    lines = [_Line(slots) for _ in range(nodes)]
    return [dice.choice(lines).wait(job) for job in jobs]


def least_loaded(
    jobs: Sequence[Job], nodes: int, slots: int, seed: int, heartbeat_s: float = HEARTBEAT_S
) -> list[float]:
    """A router that sends each request to the node whose last heartbeat told of the least work."""
    dice = random.Random(seed)
    lines = [_Line(slots) for _ in range(nodes)]
    beats = [_Beat(dice.uniform(0, heartbeat_s)) for _ in range(nodes)]
    waits: list[float] = []
    for job in jobs:
        for line, beat in zip(lines, beats, strict=True):
            beat.look(line, job.at_s, heartbeat_s)
        least = min(beat.busy for beat in beats)
        chosen = dice.choice([number for number, beat in enumerate(beats) if beat.busy == least])
        waits.append(lines[chosen].wait(job))
    return waits


class _Line:
    """A line with its own slots. `ends` are the times at which its slots become free."""

    def __init__(self, slots: int) -> None:
        self.ends = [0.0] * slots
        self.all_ends: list[float] = []

    def wait(self, job: Job) -> float:
        """Put the job in; what it waits."""
        start_s = max(job.at_s, self.ends[0])
        heapq.heapreplace(self.ends, start_s + job.service_s)
        heapq.heappush(self.all_ends, start_s + job.service_s)
        return start_s - job.at_s

    def busy(self, now_s: float) -> int:
        """Jobs that run or wait. Times only go on."""
        while self.all_ends and self.all_ends[0] <= now_s:
            heapq.heappop(self.all_ends)
        return len(self.all_ends)


class _Beat:
    """What the last heartbeat of a node told."""

    def __init__(self, first_at_s: float) -> None:
        self.busy = 0
        self._next_s = first_at_s

    def look(self, line: _Line, now_s: float, period_s: float) -> None:
        """A beat that was due since is taken as of now: the router is given a little more than it would have."""
        if now_s >= self._next_s:
            self.busy = line.busy(now_s)
            self._next_s += period_s * (1 + (now_s - self._next_s) // period_s)
