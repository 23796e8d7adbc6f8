"""Tasks with a name, each of them watched: one that dies of something unforeseen is told, and never just lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)

RESTART_AFTER_S: Final = 1.0


class Tasks:
    """Holds its tasks until they end. `on_death(name)` hears of a vital task that ended by itself."""

    def __init__(self, on_death: Callable[[str], None] | None = None) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._on_death = on_death
        self._stopping = False

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`, which ends by itself; an exception of it is logged under `name`."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def start_vital(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which must not end before `stop`."""
        self.start(name, work).add_done_callback(self._vital_ended)

    async def stop(self) -> None:
        """Cancel what runs and wait for it. Safe to call twice."""
        self._stopping = True
        running = tuple(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            facts = {"event": "task_failed", "task": task.get_name()}
            log.error("task_failed", extra=facts, exc_info=error)

    def _vital_ended(self, task: asyncio.Task[None]) -> None:
        if not self._stopping and self._on_death is not None:
            self._on_death(task.get_name())


class WatchedTask:
    """Owner of one long-lived task, started again when it dies of an error. `start` and `stop` may be called twice."""

    def __init__(self, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        self._work = work
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the work, unless it runs already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """Cancel the work and wait until it has ended."""
        task, self._task = self._task, None
        if task is not None and not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            try:
                await self._work()
                return
            except Exception:
                log.exception("task died, starting it again", extra={"event": "bus.task_died", "task": self._name})
            await asyncio.sleep(RESTART_AFTER_S * (0.5 + random.random()))  # noqa: S311 jitter, not a secret
