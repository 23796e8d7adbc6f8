"""Who has what of one file, and whom to ask for which chunk next. Plain; clock and dice are handed in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.peer import CHUNK_BYTES, Offer
from worker.peers import chunks

WINDOW: Final = 64
"""Chunks among which the rarest is chosen: what is taken stays close together, and nodes take different ones."""
_WINDOW: Final = (1 << WINDOW) - 1
SAMPLE: Final = 12
"""Of these so many are compared: with many nodes all of them would take longer than a chunk is worth."""
PER_HOLDER: Final = 3
BUSY_S: Final = 0.2
FAILED_LEAST_S: Final = 2.0
FAILED_MOST_S: Final = 60.0
WRONG_S: Final = 300.0
OFFER_S: Final = 300.0
"""An offer that was not renewed for so long is no offer any more: half of what its token is good for."""


class Shunned:
    """Nodes that are left alone, for all files of this node."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def failed(self, node: str) -> None:
        """It gave nothing: leave it alone, each time in a row for twice as long."""
        count = self._failures[node] = self._failures.get(node, 0) + 1
        self.shun(node, min(FAILED_LEAST_S * 2 ** min(count - 1, 10), FAILED_MOST_S))

    def worked(self, node: str) -> None:
        """It gave something."""
        self._failures.pop(node, None)

    def shun(self, node: str, seconds: float) -> None:
        """Leave it alone for so long."""
        self._until[node] = max(self._until.get(node, 0.0), self._clock() + seconds)

    def __contains__(self, node: str) -> bool:
        return self._until.get(node, 0.0) > self._clock()


@dataclass(slots=True)
class Holder:
    """One node that has some of the file."""

    offer: Offer
    have: int
    heard: float
    asked: int = 0
    """Chunks that we are being sent."""
    busy_until: float = 0.0


class Holders:
    """Those of one file."""

    def __init__(
        self, size_bytes: int, shunned: Shunned, clock: Callable[[], float], dice: Callable[[], float]
    ) -> None:
        self._size = size_bytes
        self._shunned = shunned
        self._clock = clock
        self._dice = dice
        self._all: dict[str, Holder] = {}

    def offered(self, offer: Offer) -> int:
        """A node says what it has. Returns the chunks that it did not have before, as far as we knew."""
        if offer.size_bytes != self._size or offer.chunk_bytes != CHUNK_BYTES:
            return 0
        count = chunks.count_of(self._size)
        have = chunks.all_of(self._size) if offer.complete else chunks.from_ranges(offer.have, count)
        known = self._all.get(offer.node)
        if known is None:
            self._all[offer.node] = Holder(offer, have, self._clock())
            return have
        new, known.offer, known.have, known.heard = have & ~known.have, offer, have, self._clock()
        return new

    def grown(self, node: str, have: int) -> None:
        """It was seen to have these too."""
        if node in self._all:
            self._all[node].have |= have

    def lacks(self, node: str, chunk: int) -> None:
        """It did not have the chunk after all."""
        if node in self._all:
            self._all[node].have &= ~(1 << chunk)

    def forget(self, node: str) -> None:
        """Its offer does not hold any more."""
        self._all.pop(node, None)

    def keep(self, node: str) -> None:
        """Forget all others."""
        self._all = {each: holder for each, holder in self._all.items() if each == node}

    def complete(self) -> list[Holder]:
        """Those that have all of it, and are not shunned."""
        return [each for each in self._live() if each.offer.complete]

    def available(self, missing: int) -> int:
        """Of the missing chunks those that somebody has, be it that he is busy."""
        found = 0
        for each in self._live():
            found |= each.have
        return found & missing

    def pick(self, missing: int) -> tuple[int, Holder] | None:
        """The next chunk, and of whom: the rarest of the lowest, of the one who has least to do."""
        now = self._clock()
        free = [each for each in self._live() if each.busy_until <= now and each.asked < PER_HOLDER]
        union = 0
        for each in free:
            union |= each.have
        wanted = union & missing
        if not wanted:
            return None
        base = (wanted & -wanted).bit_length() - 1
        views = [each.have >> base & _WINDOW for each in self._all.values()]
        window = list(chunks.each(wanted >> base & _WINDOW))
        some = window if len(window) <= SAMPLE else [self._one_of(window) for _ in range(SAMPLE)]
        chunk = min(some, key=lambda number: (sum(view >> number & 1 for view in views), self._dice())) + base
        having = [each for each in free if each.have >> chunk & 1]
        return chunk, min(having, key=lambda each: (each.asked, each.offer.uploads, self._dice()))

    def _one_of(self, window: Sequence[int]) -> int:
        return window[int(self._dice() * len(window)) % len(window)]

    def free_at(self, missing: int) -> float:
        """When the next of those who have something of it, and are busy, may be asked again."""
        having = [each.busy_until for each in self._live() if each.have & missing]
        return min(having, default=0.0)

    def growing(self) -> Holder | None:
        """The one to look at again: of those that are not complete the one that has most."""
        return max(
            (each for each in self._live() if not each.offer.complete),
            key=lambda each: each.have.bit_count(),
            default=None,
        )

    def _live(self) -> Iterable[Holder]:
        oldest = self._clock() - OFFER_S
        return [each for node, each in self._all.items() if node not in self._shunned and each.heard > oldest]
