"""Whom this node asks for work: the lines of models that are warm here, and of those in demand that it could start.

Demands are heard on one subject; the backlog is looked at for clients that send none.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from bus.connection import Bus, Message, Subscription
from bus.job import Job
from bus.watched import Tasks
from schemas.demand import Demand
from schemas.errors import InvalidName
from schemas.frame import BadFrame
from schemas.subjects import decode
from worker.appetite import Look
from worker.backlog import Backlog
from worker.pulls import ModelPulls
from worker.serving import Serving

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 0.5
"""How often what is in demand is decided anew without any news."""


class Pulling:
    """Owner of all pulls of this node. `deliver` gets what they bring."""

    def __init__(
        self,
        bus: Bus,
        serving: Serving,
        deliver: Callable[[Job], None],
        *,
        tasks: Tasks,
        clock: Callable[[], float],
        repair: Callable[[], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._serving = serving
        self._deliver = deliver
        self._tasks = tasks
        self._clock = clock
        self._repair = repair
        self._pulls: dict[str, ModelPulls] = {}
        self._demands: Subscription | None = None
        self._running = False
        self._look_at = 0.0
        self._backlog = Backlog(bus, self._of_interest, self._saw, asked_here=self._asked)

    def start(self) -> None:
        """Hear demands, and pull for what is free."""
        self._running = True
        self._demands = self._bus.subscribe(self._bus.names.demand_all(), self._heard)
        self._tasks.start_vital("backlog", self._backlog.run())
        for model in self._serving.slots.models:
            self.want_for(model)

    async def stop(self) -> None:
        """Ask for nothing more. Safe to call twice."""
        self._running = False
        if self._demands is not None:
            self._demands.close()
            self._demands = None
        pulls, self._pulls = self._pulls, {}
        for each in pulls.values():
            await each.stop()

    # -- asking: plain -----------------------------------------------------------------------------------------------
    def want_for(self, model: str) -> None:
        """Slots of the model were taken or freed, an engine came or went, or a start was decided."""
        if not self._running:
            return
        slots = self._serving.slots
        if slots.device_limit is not None:
            self._warm_all()
        else:
            self._warm(model)
        if self._serving.appetite.kind(model, self._clock()) is not None:
            self._cold(model)

    def _warm_all(self) -> None:
        """With a limit of devices, what one model takes the others on its device have no more."""
        for model in tuple(self._serving.slots.models):
            self._warm(model)

    def _warm(self, model: str) -> None:
        pulls = self._pulls.get(model)
        if pulls is None:
            if not self._serving.slots.serves(model):
                return
            pulls = self._of(model)
            pulls.ready()
        pulls.warm(self._serving.slots.free(model))

    def _cold(self, model: str) -> None:
        cost = self._serving.starts.cost(model)
        pulls = self._pulls.get(model)
        if pulls is not None or cost is not None:
            (pulls or self._of(model)).cold(cost)

    def _of(self, model: str) -> ModelPulls:
        pulls = self._pulls.get(model)
        if pulls is None:
            pulls = ModelPulls(self._bus, model, self._deliver, tasks=self._tasks, repair=self._repair)
            self._pulls[model] = pulls
        return pulls

    def _asked(self, lane: str, model: str) -> int:
        pulls = self._pulls.get(model)
        return 0 if pulls is None else pulls.asked(lane)

    # -- demand ------------------------------------------------------------------------------------------------------
    def _heard(self, message: Message) -> None:
        try:
            model = decode(message.subject.rpartition(".")[2])
            demand = Demand.decode(message.payload)
        except (InvalidName, BadFrame) as error:
            log.info("bad_demand", extra={"event": "bad_demand", "reason": str(error)})
            return
        if self._serving.serves(model):
            self._serving.appetite.heard(model, demand, self._clock())
            self._cold(model)

    def _of_interest(self) -> Collection[str]:
        """Models that this node could do something for if somebody waited for them."""
        if not self._running:
            return ()
        return frozenset(model for model in self._serving.models if not self._serving.slots.free(model))

    def _saw(self, look: Look) -> None:
        for model in self._serving.appetite.looked(look, self._clock()):
            self._cold(model)

    # -- time --------------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Plans and demands change without a word: look again, and let go of what nobody needs."""
        if not self._running or now < self._look_at:
            return
        self._look_at = now + LOOK_AGAIN_S
        appetite = self._serving.appetite
        for model in (*appetite.wanted(now), *appetite.forget(now)):
            self._cold(model)
        for model, pulls in tuple(self._pulls.items()):
            if pulls.wants_cold and appetite.kind(model, now) is None:
                pulls.cold(None)
            if pulls.idle(now, needed=self._serving.slots.serves(model)):
                del self._pulls[model]
                self._tasks.start(f"stop pulls {model}", pulls.stop())
