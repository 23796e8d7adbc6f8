"""Keeps the `Shelf` view up to date: records of copies, models and tasks, and tasks as they are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from bus.connection import Bus
from bus.kv import Bucket, Entry, Follower
from gateway.messages import Stored
from gateway.shelf import Shelf, Shelver
from gateway.taskwatch import TaskWatch

JOIN_S: Final = 0.05
"""Records that come within this time make one new view."""
_SHARE: Final = 0.05
"""Of one processor, that views may cost at most: where they are dear, they are made less often."""


class ShelfWatch:
    """Owns the shelver. `shelf` is the present view; `repair` makes the buckets anew when somebody deleted them."""

    def __init__(self, bus: Bus, repair: Callable[[], Awaitable[None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._shelver = Shelver(bus.names)
        self._copies = Follower(Bucket(bus, bus.names.bucket_copies), self._copies_changed, repair=repair)
        self._models = Follower(Bucket(bus, bus.names.bucket_models), self._models_changed, repair=repair)
        self._tasks = Follower(Bucket(bus, bus.names.bucket_tasks), self._tasks_changed, repair=repair)
        self._sent = TaskWatch(bus, self._task_sent, self._tasks_found, lambda: self._shelver.unheard)
        self._latest: Mapping[str, Entry] | None = None
        self._asked: Mapping[str, Entry] | None = None
        self._heard: list[tuple[str, bytes]] = []
        self._wanted: Mapping[str, Entry] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_at = float("-inf")

    @property
    def shelf(self) -> Shelf:
        """The present view."""
        return self._shelver.shelf

    def newest(self) -> Shelf:
        """The present view, made now if something has come that is not in it yet: for a question whose answer may be
        that there is no such model."""
        if self._timer is not None:
            self._apply()
        return self._shelver.shelf

    @property
    def rejected_total(self) -> int:
        """Values in the buckets that were no record."""
        return self._shelver.rejected_total

    async def start(self) -> None:
        """Until the first whole view is there."""
        await asyncio.gather(self._copies.start(), self._models.start(), self._tasks.start())
        self._apply()
        self._sent.start()

    async def stop(self) -> None:
        """Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
        await self._sent.stop()
        await self._tasks.stop()
        await self._copies.stop()
        await self._models.stop()

    def _copies_changed(self, entries: Mapping[str, Entry]) -> None:
        self._latest = entries
        self._soon()

    def _models_changed(self, entries: Mapping[str, Entry]) -> None:
        self._wanted = entries
        self._soon()

    def _tasks_changed(self, entries: Mapping[str, Entry]) -> None:
        self._asked = entries
        self._soon()

    def _task_sent(self, subject: str, payload: bytes) -> None:
        self._heard.append((subject, payload))
        self._soon()

    def _tasks_found(self, asked: frozenset[str], there: list[Stored]) -> None:
        self._apply()
        self._shelver.compare_tasks(asked, [(one.subject, one.payload, one.sequence) for one in there])

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(max(self._due_at - self._loop.time(), 0.0), self._apply)

    def _apply(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        started_at = self._loop.time()
        copies, self._latest = self._latest, None
        models, self._wanted = self._wanted, None
        tasks, self._asked = self._asked, None
        heard, self._heard = self._heard, []
        self._shelver.hear_tasks(heard)
        if tasks is not None:
            self._shelver.take_tasks(tasks)
        if models is not None:
            self._shelver.take_models(models)
        if copies is not None:
            self._shelver.take_copies(copies, started_at)
        ended_at = self._loop.time()
        self._due_at = ended_at + max(JOIN_S, (ended_at - started_at) / _SHARE)
