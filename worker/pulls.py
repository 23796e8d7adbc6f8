"""What this node asks of the two lanes of one model: warm pulls for its free slots, a cold one to start an engine for.

Interactive goes first: after a time without a free slot the batch lane is asked `BATCH_DELAY_S` later. The same message
may be what many nodes would start an engine for, and the server gives it to the first who asks: so who has the higher
cost asks a little later. A pull cannot be taken back; a cold one runs out soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from bus.connection import Bus
from bus.job import Job
from bus.pull import WorkPull
from bus.watched import Tasks
from schemas import topology
from schemas.subjects import BATCH, INTERACTIVE, LANES

BATCH_DELAY_S: Final = 0.02
COLD_STEP_S: Final = 0.02
"""How much later a cold pull is asked for each step of its cost above the lowest."""
COLD_EXPIRES_S: Final = 4.0
PULLS_LIMIT: Final = 16
"""Pulls of one lane that stand at the server, however many slots are free: each costs it a heartbeat every 2 s, and one
that was answered is replaced at once."""
IDLE_LIMIT_S: Final = 45.0
"""Pulls that were not wanted for this long are let go: what they asked has run out."""


class ModelPulls:
    """The pulls of one model, made when they are first needed."""

    def __init__(
        self,
        bus: Bus,
        model: str,
        deliver: Callable[[Job], None],
        *,
        tasks: Tasks,
        repair: Callable[[], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._model = model
        self._deliver = deliver
        self._tasks = tasks
        self._repair = repair
        self._loop = asyncio.get_running_loop()
        self._warm: dict[str, WorkPull] = {}
        self._cold: dict[str, WorkPull] = {}
        self._free = 0
        self._cost: int | None = None
        self._batch_timer: asyncio.TimerHandle | None = None
        self._cold_timers: list[asyncio.TimerHandle] = []
        self._needed_at = self._loop.time()

    # -- warm --------------------------------------------------------------------------------------------------------
    def ready(self) -> None:
        """An engine is on its way: what its slots will ask shall stand."""
        if not self._warm:
            self._warm = {lane: self._make(lane, "") for lane in LANES}
        self._needed_at = self._loop.time()

    def warm(self, free: int) -> None:
        """So many slots are free."""
        if not self._warm:
            if not free:
                return
            self.ready()
        self._free = min(free, PULLS_LIMIT)
        self._warm[INTERACTIVE].want(self._free)
        if not free:
            self._warm_batch()
        elif self._batch_timer is None:
            self._batch_timer = self._loop.call_later(BATCH_DELAY_S, self._warm_batch)

    def _warm_batch(self) -> None:
        if self._batch_timer is not None:
            self._batch_timer.cancel()
            self._batch_timer = None
        self._warm[BATCH].want(self._free)

    # -- cold --------------------------------------------------------------------------------------------------------
    def cold(self, cost: int | None) -> None:
        """One request of each lane is wanted, to start an engine for at this cost; None: no more."""
        was, self._cost = self._cost, cost
        if cost is None:
            self._stop_cold_timers()
            for pull in self._cold.values():
                pull.want(0)
        elif was is None:
            if not self._cold:
                self._cold = {lane: self._make(lane, "cold ", COLD_EXPIRES_S) for lane in LANES}
            self._stop_cold_timers()
            late_s = COLD_STEP_S * max(cost - 1, 0)
            for lane, more_s in ((INTERACTIVE, 0.0), (BATCH, BATCH_DELAY_S)):
                self._cold_timers.append(self._loop.call_later(late_s + more_s, self._ask_cold, lane))
        elif was != cost and not self._cold_timers:
            for lane in LANES:
                self._ask_cold(lane)

    def _ask_cold(self, lane: str) -> None:
        if self._cost is not None:
            self._cold[lane].want(1, priority=self._cost)
        if lane == BATCH:
            self._cold_timers.clear()

    def _stop_cold_timers(self) -> None:
        for timer in self._cold_timers:
            timer.cancel()
        self._cold_timers.clear()

    @property
    def wants_cold(self) -> bool:
        """Whether a cold pull stands, or is about to."""
        return self._cost is not None

    # -- both --------------------------------------------------------------------------------------------------------
    def asked(self, lane: str) -> int:
        """Pulls of ours that stand for the lane, as far as is known."""
        return sum(pulls[lane].outstanding for pulls in (self._warm, self._cold) if pulls)

    def _make(self, lane: str, kind: str, expires_s: float | None = None) -> WorkPull:
        pull = WorkPull(
            self._bus,
            topology.line(self._bus.names, lane, self._model),
            self._deliver,
            name=f"{kind}{lane} {self._model}",
            repair=self._repair,
            brief_s=expires_s,
        )
        self._tasks.start(f"pull {kind}{lane} {self._model}", pull.start())
        return pull

    def idle(self, now: float, *, needed: bool) -> bool:
        """Whether nothing was wanted for so long that the pulls can be stopped. `needed`: the model has an engine."""
        if needed or self._cost is not None:
            self._needed_at = now
        return now - self._needed_at > IDLE_LIMIT_S

    async def stop(self) -> None:
        """Ask for nothing more. Safe to call twice."""
        self._cost, self._free = None, 0
        self._stop_cold_timers()
        if self._batch_timer is not None:
            self._batch_timer.cancel()
            self._batch_timer = None
        pulls, self._warm, self._cold = (*self._warm.values(), *self._cold.values()), {}, {}
        for pull in pulls:
            await pull.stop()
