"""Hears what is put into the tasks stream, and looks into it at each new session, so that what no node has taken yet is
known too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from bus.connection import Bus
from bus.watched import WatchedTask
from gateway.messages import Stored, messages
from schemas.errors import PunaError

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 60.0
"""While there are tasks that no node has heard of: somebody may have taken one out of the stream."""
_SOON_S: Final = 2.0

OnFound = Callable[[frozenset[str], list[Stored]], None]


class TaskWatch:
    """`heard(subject, payload)` is called for each task as it is sent; `found(asked, there)` with all that lie in the
    stream, `asked` being those that were `unheard` before it was read."""

    def __init__(
        self, bus: Bus, heard: Callable[[str, bytes], None], found: OnFound, unheard: Callable[[], frozenset[str]]
    ) -> None:
        self._bus = bus
        self._heard = heard
        self._found = found
        self._unheard = unheard
        self._stir = asyncio.Event()
        self._task = WatchedTask(self._keep, name="tasks in the stream")
        self._subscriptions = [bus.subscribe_raw(subject, self._came) for subject in bus.names.tasks_all()]

    def start(self) -> None:
        """Begin to look. What is sent is heard from the beginning."""
        self._bus.on_session(self._session)
        self._task.start()

    async def stop(self) -> None:
        """Safe to call twice."""
        for subscription in self._subscriptions:
            subscription.close()
        await self._task.stop()

    def _came(self, subject: str, _reply: str, payload: bytes) -> None:
        self._heard(subject, payload)

    async def _session(self) -> None:
        self._stir.set()

    async def _keep(self) -> None:
        wait_s = LOOK_AGAIN_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stir.wait()
            if self._stir.is_set() or self._unheard():
                wait_s = LOOK_AGAIN_S if await self._look() else _SOON_S

    async def _look(self) -> bool:
        asked = self._unheard()
        names = self._bus.names
        try:
            there = [one async for one in messages(self._bus, names.stream_tasks, f"{names.prefix}.task.>")]
        except PunaError as error:
            log.info("tasks_unread", extra={"event": "tasks_unread", "reason": error.message})
            return False
        self._stir.clear()
        self._found(asked, there)
        return True
