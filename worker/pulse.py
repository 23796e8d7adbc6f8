"""The node's tick: what is due by the clock, ten times a second, and how late the event loop is with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
LAG_TOLD_S: Final = 1.0


class Pulse:
    """Calls `on_tick(now)` until stopped."""

    def __init__(self, on_tick: Callable[[float], None]) -> None:
        self.lag_s = 0.0
        """How late the last tick was."""
        self._on_tick = on_tick
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to tick."""
        self._timer = self._loop.call_later(TICK_S, self._tick, self._loop.time() + TICK_S)

    def stop(self) -> None:
        """Tick no more. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, due_at: float) -> None:
        self.start()  # first, so that a tick that fails is not the last one
        now = self._loop.time()
        self.lag_s = max(now - due_at, 0.0)
        if self.lag_s > LAG_TOLD_S:
            log.warning("loop_late", extra={"event": "loop_late", "lag_s": round(self.lag_s, 3)})
        self._on_tick(now)
