"""A long-lived task with a name, which is started again when it dies of an error that nobody foresaw."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger(__name__)

RESTART_AFTER_S: Final = 1.0


class WatchedTask:
    """Owner of one task. `start` and `stop` may be called twice."""

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
