"""Keeps the `Fleet` view up to date: heartbeats out of the bucket, time from our own clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from bus.connection import Bus
from bus.kv import Bucket, Entry, Follower
from gateway.fleet import Fleet, Roster

log = logging.getLogger(__name__)

AGE_EVERY_S: Final = 0.5
JOIN_S: Final = 0.05
"""Heartbeats that come within this time make one new view: a large fleet costs no more views than a small one."""


class FleetWatch:
    """Owns the roster. `fleet` is the present view; `repair` makes the bucket anew when somebody deleted it."""

    def __init__(self, bus: Bus, repair: Callable[[], Awaitable[None]]) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._roster = Roster()
        self._follower = Follower(Bucket(bus, bus.names.bucket_nodes), self._changed, repair=repair)
        self._latest: Mapping[str, Entry] | None = None
        self._apply_timer: asyncio.TimerHandle | None = None
        self._age_timer: asyncio.TimerHandle | None = None
        self._applied_at = float("-inf")

    @property
    def fleet(self) -> Fleet:
        """The present view."""
        return self._roster.fleet

    @property
    def rejected_total(self) -> int:
        """Values in the bucket that were no heartbeat."""
        return self._roster.rejected_total

    async def start(self) -> None:
        """Until the first whole view is there."""
        self._bus.on_session(self._session)
        await self._follower.start()
        self._apply()
        self._age_timer = self._loop.call_later(AGE_EVERY_S, self._age)

    async def stop(self) -> None:
        """Safe to call twice."""
        for timer in (self._apply_timer, self._age_timer):
            if timer is not None:
                timer.cancel()
        await self._follower.stop()

    async def _session(self) -> None:
        self._roster.session(self._loop.time())

    def _changed(self, entries: Mapping[str, Entry]) -> None:
        self._latest = entries
        if self._apply_timer is None:
            wait_s = max(self._applied_at + JOIN_S - self._loop.time(), 0.0)
            self._apply_timer = self._loop.call_later(wait_s, self._apply)

    def _apply(self) -> None:
        if self._apply_timer is not None:
            self._apply_timer.cancel()
            self._apply_timer = None
        self._applied_at = self._loop.time()
        if self._latest is not None:
            before, entries = self._roster.fleet, self._latest
            self._latest = None
            self._tell(before, self._roster.take(entries, self._applied_at))

    def _age(self) -> None:
        self._age_timer = self._loop.call_later(AGE_EVERY_S, self._age)
        if self._bus.connected and self._roster.fleet.whole:
            before = self._roster.fleet
            self._tell(before, self._roster.age(self._loop.time()))

    def _tell(self, before: Fleet, after: Fleet) -> None:
        for node in after.nodes.keys() - before.nodes.keys():
            log.info("node_seen", extra={"event": "node_seen", "node": node})
        for node in before.nodes.keys() - after.nodes.keys():
            log.warning("node_gone", extra={"event": "node_gone", "node": node})
