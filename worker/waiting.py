"""Requests that wait on this node for an engine or a slot: first come, first served, each until its deadline."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass

from worker.reply import Reply
from worker.work import Work


@dataclass(eq=False, slots=True)
class Waiting:
    """One request that waits. `reply` unset: it is made when the request is served, or refused."""

    work: Work
    reply: Reply | None


class WaitingRoom:
    """Owner of the requests that wait."""

    def __init__(self) -> None:
        self._lines: defaultdict[str, deque[Waiting]] = defaultdict(deque)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiting]:
        return (each for line in tuple(self._lines.values()) for each in tuple(line))

    def count(self, model: str) -> int:
        """How many wait for the model."""
        return len(self._lines[model]) if model in self._lines else 0

    def add(self, waiting: Waiting) -> None:
        """To the end of its model's line."""
        self._lines[waiting.work.model].append(waiting)
        self._count += 1

    def first(self, model: str) -> Waiting | None:
        """The one who has waited longest."""
        line = self._lines.get(model)
        return line[0] if line else None

    def of(self, model: str) -> tuple[Waiting, ...]:
        """Those who wait for the model, who has waited longest first."""
        return tuple(self._lines.get(model, ()))

    def remove(self, waiting: Waiting) -> bool:
        """It waits no more. False if it did not."""
        line = self._lines.get(waiting.work.model)
        if not line or waiting not in line:
            return False
        line.remove(waiting)
        self._count -= 1
        if not line:
            del self._lines[waiting.work.model]
        return True

    def find(self, request_id: str) -> Waiting | None:
        """The waiting request with this id."""
        return next((each for each in self if each.work.head.request_id == request_id), None)
