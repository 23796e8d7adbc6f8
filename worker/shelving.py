"""What health and metrics know of the models on this node's disks: as it was when it was looked at last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from schemas.model import CopyRecord
from worker.copies import Copies
from worker.store.budget import Room
from worker.store.store import Store


class Shelving:
    """`opened`: whether the store can be used; `unusable`: why it cannot; `tasks_waiting`: tasks that wait here."""

    def __init__(
        self,
        store: Store,
        copies: Copies,
        *,
        opened: Callable[[], bool],
        unusable: Callable[[], str | None],
        tasks_waiting: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.room: Room | None = None
        """Of the models' folder."""
        self._store = store
        self._copies = copies
        self._monotonic = monotonic
        self._progress = copies.progress
        self._moved_at = monotonic()
        self._opened = opened
        self._unusable = unusable
        self._tasks_waiting = tasks_waiting

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used."""
        return self._unusable() or self._store.trouble

    @property
    def is_open(self) -> bool:
        """It can be."""
        return self._opened()

    @property
    def free_bytes(self) -> int | None:
        """Of its disk."""
        return self.room.free_bytes if self.room else None

    async def look(self) -> None:
        """Look now. Raises a `SourceError` where the models' folder cannot be used."""
        if self._opened():
            await self._store.probe()
            self.room = await self._store.room()

    def idle_s(self) -> float:
        """How long models are being fetched already and nothing of any has come; 0 while none is."""
        now, progress = self._monotonic(), self._copies.progress
        if progress != self._progress or not self._copies.active:
            self._progress, self._moved_at = progress, now
        return now - self._moved_at

    @property
    def active(self) -> int:
        """Models that are being fetched."""
        return self._copies.active

    @property
    def queued(self) -> int:
        """Models and tasks that wait for their turn."""
        return self._copies.waiting + self._tasks_waiting()

    @property
    def records(self) -> Iterable[CopyRecord]:
        """Of all copies."""
        return self._copies.states().values()
