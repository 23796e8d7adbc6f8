"""What must happen at the start of each session: callbacks in their order, each until it went well."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

log = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.1
RETRY_LONGEST_S: Final = 2.0
END_TIMEOUT_S: Final = 2.0

SessionCallback = Callable[[], Awaitable[None]]


class Sessions:
    """Owner of the session callbacks, and of the tasks that run them: one a session, alive as long as it is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._callbacks: list[SessionCallback] = []
        self._more = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, callback: SessionCallback) -> None:
        """Call it in this session, if there is one, and in each that comes."""
        self._callbacks.append(callback)
        self._more.set()

    def begin(self, session: int) -> None:
        """A session is up. Its callbacks wait until those of the last one, which are cancelled, have ended."""
        before = frozenset(self._tasks)
        task = asyncio.create_task(self._run(before), name=f"{self._name}-session-{session}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """The session is gone: a callback that still runs is cancelled and will be called anew in the next one."""
        for task in self._tasks:
            task.cancel()

    async def end(self) -> None:
        """Cancel, and wait until all has ended. Raises nothing; one that will not end is logged and left."""
        self.cancel()
        mine = asyncio.current_task()
        left = [task for task in self._tasks if task is not mine]
        if left and (await asyncio.wait(left, timeout=END_TIMEOUT_S))[1]:
            log.error("a session callback does not end", extra={"event": "bus.session_stuck"})

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("session task died", exc_info=task.exception(), extra={"event": "bus.session_died"})

    async def _run(self, before: frozenset[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before)
        done = 0
        while True:
            while done < len(self._callbacks):
                await self._until_well(self._callbacks[done])
                done += 1
            self._more.clear()
            await self._more.wait()

    async def _until_well(self, callback: SessionCallback) -> None:
        wait_s = RETRY_FIRST_S
        while True:
            try:
                return await callback()
            except Exception:
                shown = getattr(callback, "__qualname__", repr(callback))
                log.warning("session callback failed", exc_info=True, extra={"event": "bus.session", "callback": shown})
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 (jitter, not a secret)
            wait_s = min(wait_s * 2, RETRY_LONGEST_S)
