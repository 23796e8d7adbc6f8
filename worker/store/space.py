"""Room on the disk: what is promised to downloads, and which models go when it gets scarce."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from worker.sources.errors import NoSpace
from worker.store.manifest import Copy


class Reservation:
    """Bytes promised to a download. Those that are on the disk already count no more; at the end none does."""

    def __init__(self, bytes_: int, ended: Callable[[Reservation], None]) -> None:
        self.remaining_bytes = bytes_
        self._ended = ended

    def spent(self, bytes_: int) -> None:
        """So many are on the disk."""
        self.remaining_bytes = max(self.remaining_bytes - bytes_, 0)

    def release(self) -> None:
        """The end. Safe to call twice."""
        self.remaining_bytes = 0
        self._ended(self)


class Reservations:
    """All that are promised of one file system."""

    def __init__(self) -> None:
        self._all: list[Reservation] = []

    @property
    def bytes(self) -> int:
        """What is promised and not written yet."""
        return sum(each.remaining_bytes for each in self._all)

    def missing(self, bytes_: int, free_bytes: int, reserved_bytes: int) -> int:
        """How much too little there is for so many more; 0 if there is enough."""
        return max(bytes_ - (free_bytes - reserved_bytes - self.bytes), 0) if bytes_ else 0

    def add(self, bytes_: int) -> Reservation:
        """Promise them."""
        made = Reservation(bytes_, self._end)
        self._all.append(made)
        return made

    def _end(self, reservation: Reservation) -> None:
        self._all = [each for each in self._all if each is not reservation]


def no_space(
    bytes_: int,
    free_bytes: int,
    promised_bytes: int,
    reserved_bytes: int,
    *,
    held_bytes: int = 0,
    budget_bytes: int | None = None,
) -> NoSpace:
    """The refusal, with its numbers."""
    if budget_bytes is not None and bytes_ > budget_bytes - held_bytes - promised_bytes:
        return NoSpace(
            f"needs {_gib(bytes_)} GiB; models may have {_gib(budget_bytes)} (store.budget_bytes), of which "
            f"{_gib(held_bytes)} are taken and {_gib(promised_bytes)} promised to other downloads"
        )
    return NoSpace(
        f"needs {_gib(bytes_)} GiB; the disk has {_gib(free_bytes)} free, of which {_gib(reserved_bytes)} are reserved "
        f"(store.reserved_disk_bytes) and {_gib(promised_bytes)} promised to other downloads"
    )


def _gib(bytes_: int) -> str:
    return f"{bytes_ / 2**30:.2f}"


@dataclass(frozen=True, slots=True)
class Marks:
    """When to clear, and how far: shares of what models may have."""

    high_percent: float | None
    low_percent: float
    budget_bytes: int | None

    def excess(self, held_bytes: int, free_bytes: int, total_bytes: int) -> int:
        """How many bytes are to go now; 0 below the high mark."""
        if self.high_percent is None:
            return 0
        whole = self.budget_bytes if self.budget_bytes is not None else total_bytes
        used = held_bytes if self.budget_bytes is not None else total_bytes - free_bytes
        if used <= whole * self.high_percent / 100:
            return 0
        return int(used - whole * self.low_percent / 100)


def victims(
    copies: Iterable[Copy], excess_bytes: int, protected: Collection[str], *, all_or_none: bool = False
) -> list[Copy]:
    """Which copies go, those that were used least recently first, until so many bytes are free.

    What two models share is freed with the second one. Never: what is protected, pinned, served in place or not ours
    to delete. `all_or_none`: none goes where all that may go would not be enough.
    """
    everything = list(copies)
    order = sorted((each for each in everything if _may_go(each, protected)), key=lambda each: each.used_at)
    users: dict[str, int] = {}
    for copy in everything:
        for blob in copy.manifest.blobs:
            users[blob] = users.get(blob, 0) + 1
    chosen: list[Copy] = []
    for copy in order:
        if excess_bytes <= 0:
            break
        chosen.append(copy)
        sizes = {file.sha256: file.size_bytes for file in copy.manifest.files if file.sha256}
        for blob in copy.manifest.blobs:
            users[blob] -= 1
            excess_bytes -= sizes[blob] if users[blob] == 0 else 0
    return [] if all_or_none and excess_bytes > 0 else chosen


def _may_go(copy: Copy, protected: Collection[str]) -> bool:
    manifest = copy.manifest
    return copy.removable and not manifest.in_place and not manifest.profile.pinned and copy.model not in protected
