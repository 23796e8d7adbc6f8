"""What requests and pages see of the fleet at one moment: its nodes, and the files on their disks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.fleet import Fleet
from gateway.ondisk import OnDisk, look_up
from gateway.shelf import Shelf, Stored


@dataclass(frozen=True, slots=True)
class Moment:
    """One state of the fleet. `now`: our monotonic clock."""

    fleet: Fleet
    shelf: Shelf
    now: float

    def stored(self, model: str) -> Stored | None:
        """All records of the model's files."""
        return self.shelf.models.get(model)

    def disk(self, model: str) -> OnDisk | None:
        """The same, summed up."""
        return look_up(model, self.fleet, self.shelf, self.now)


View = Callable[[], Moment]
