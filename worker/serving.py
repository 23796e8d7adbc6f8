"""What the dispatcher decides is done here: slots are taken, engines asked, requests passed on, given back or refused.

The one owner of what runs on this node. All but the way into the line is plain calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from bus.connection import Bus
from bus.watched import Tasks
from schemas.demand import SPILL_AFTER_S
from schemas.errors import Cancelled, PunaError, Unavailable
from schemas.node import Pressure
from worker.appetite import Appetite
from worker.deaths import Deaths, Suspects
from worker.dispatcher import Decision, Question, decide
from worker.engines import Engines, ServingEngine
from worker.hold import Hold
from worker.inference import Inference
from worker.line import Line
from worker.metrics import Metrics
from worker.offer import accept_of
from worker.replies import Replies
from worker.reply import Reply
from worker.requestlog import facts_of, tell
from worker.secondtry import SecondTry
from worker.slots import Slots
from worker.starts import Grounds, Starts
from worker.tally import Tally
from worker.waiting import WaitingRoom
from worker.work import Work

OWN_PIECE_BYTES: Final = 1 << 16


class Serving:
    """Everything that runs or waits here. `on_change(model)` is called when slots of a model are taken or freed."""

    def __init__(
        self,
        node: str,
        bus: Bus,
        engines: Engines,
        *,
        replies: Replies,
        tasks: Tasks,
        metrics: Metrics,
        clock: Callable[[], float],
        on_change: Callable[[str], None],
        device_limit: int | None = None,
        spill_after_s: float = SPILL_AFTER_S,
    ) -> None:
        self.waiting = WaitingRoom()
        self.slots = Slots(clock, device_limit=device_limit, waiting=self.waiting.count, on_yield=self.refresh)
        self.appetite = Appetite()
        grounds = Grounds(engines, self.slots, self.appetite)
        self.starts = Starts(
            bus,
            node,
            grounds,
            tasks=tasks,
            clock=clock,
            on_change=on_change,
            on_denied=metrics.lease_denied,
            spill_after_s=spill_after_s,
        )
        self.idle = asyncio.Event()
        """Set while nothing runs here."""
        self.idle.set()
        self._node = node
        self._bus = bus
        self._engines = engines
        self._replies = replies
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self._on_change = on_change
        self._line = Line(bus)
        self._hold = Hold(engines, self.slots, self.starts, self.waiting, self._refuse)
        self._deaths = Deaths()
        self._second_try = SecondTry(self._deaths, self._line, tasks=tasks, clock=clock, refuse=self._refuse)
        self._suspects = Suspects()
        self.tally = Tally(clock)
        self._known: dict[str, ServingEngine] = {}
        self._running: dict[str, Inference] = {}

    def serves(self, model: str) -> bool:
        """Whether requests for the model can be served here, now or after a start."""
        return self._engines.serves(model)

    @property
    def models(self) -> Collection[str]:
        """Models for which that is so."""
        return self._engines.models

    # -- requests come -----------------------------------------------------------------------------------------------
    def take(self, work: Work, reply: Reply | None = None) -> None:
        """One request. `reply` is where an answer goes that does not travel over NATS."""
        if self.waiting and self._hold.again(work):
            return
        engine = self._pick(work)
        decision = decide(self._question(work, engine))
        if decision.ends_older:
            self._running[work.head.request_id].abandon(Cancelled("a later attempt at the request came"))
            engine = self._pick(work)
            decision = decide(self._question(work, engine))
        self._act(decision, work, reply, engine)
        self._metrics.decisions.labels(work.origin, decision.verb).inc()

    def _pick(self, work: Work) -> str | None:
        return self.slots.pick(work.model, work.head.engine, self._suspects.closed_to(work))

    def _question(self, work: Work, engine: str | None) -> Question:
        model, running = work.model, self._running.get(work.head.request_id)
        return Question(
            origin=work.origin,
            node=self._node,
            model=model,
            framed=work.head.framed,
            serves=engine is not None or self._engines.serves(model),
            free=0 if engine is None else 1,
            ready=engine is not None or self.slots.ready(model),
            draining=self.slots.closed,
            time_left_s=work.deadline_at - self._clock(),
            waiting=self.waiting.count(model),
            epoch=work.head.epoch,
            running_epoch=running.work.head.epoch if running else None,
            here=engine is not None or self.slots.serves(model),
            may_hold=engine is None and work.origin == "line" and self.starts.cost(model) is not None,
            may_wait=engine is not None or self.slots.may_wait(model),
            suspect=work.head.deaths > 0,
        )

    def _act(self, decision: Decision, work: Work, reply: Reply | None, engine: str | None) -> None:
        if decision.verb == "serve" and engine is not None:
            self._serve(work, reply, engine)
        elif decision.verb == "wait" and reply is not None:
            self._hold.wait(work, reply)
        elif decision.verb == "hold":
            self._hold.hold(work)
        elif decision.verb == "give_back":
            work.claim.give_back(decision.delay_s)
        elif decision.verb == "line":
            self._tasks.start(f"line {work.head.request_id}", self._into_line(work))
        elif decision.verb == "drop":
            work.claim.settle()
        elif decision.error is not None:
            self._refuse(work, reply, decision.error)

    def _bus_reply(self, work: Work, engine: ServingEngine | None = None) -> Reply:
        if engine is None:
            return self._replies.make(work, accept_of(self._node))
        device = ",".join(engine.spec.devices)
        return self._replies.make(work, accept_of(self._node, engine.engine_id, device))

    def _serve(self, work: Work, reply: Reply | None, engine_id: str) -> None:
        engine = self._engines.engines[engine_id]
        client = engine.client
        if client is None:
            return self._refuse(work, reply, Unavailable(f"the engine of {work.model} has just stopped"))
        inference = Inference(
            work,
            partial(self._done, engine_id),
            piece_bytes=self._bus.max_payload // 4 if work.origin != "http" else OWN_PIECE_BYTES,
            clock=self._clock,
            explain=partial(self._second_try.explain, engine_id, client),
        )
        inference.begin(client)
        self.slots.take(engine_id, inference)
        self._suspects.enter(engine_id, work, inference)
        self._running[work.head.request_id] = inference
        self.idle.clear()
        self._engines.used(work.model)
        inference.answer_to(reply or self._bus_reply(work, engine))
        self._on_change(work.model)
        return None

    def _refuse(self, work: Work, reply: Reply | None, error: PunaError) -> None:
        work.claim.settle()
        (reply or self._bus_reply(work)).error(error)
        tell(work, error)

    async def _into_line(self, work: Work) -> None:
        """A request that no slot is free for goes to whoever has one first."""
        if not self.slots.ready(work.model):
            self._line.demand(work.model)
        try:
            await self._line.put(work, work.deadline_at - self._clock())
        except PunaError as error:
            self._refuse(work, None, error)

    # -- requests end ------------------------------------------------------------------------------------------------
    def _done(self, engine_id: str, inference: Inference) -> None:
        work, error = inference.work, inference.outcome
        self.slots.release(engine_id, inference)
        self._suspects.leave(inference)
        if self._running.get(work.head.request_id) is inference:
            del self._running[work.head.request_id]
        if not self.slots.busy_total:
            self.idle.set()
        self._count(engine_id, inference)
        self._metrics.ended(inference)
        tell(work, error, facts_of(inference, engine_id))
        self.refresh(work.model)

    def _count(self, engine_id: str, inference: Inference) -> None:
        work, summary = inference.work, inference.summary
        self.tally.ended(inference.outcome, summary.total_s)
        tokens = (summary.usage or {}).get("completion_tokens")
        if isinstance(tokens, int):
            self.tally.made(tokens)
        if work.origin != "http":
            self.tally.carried(engine_id, len(work.body), inference.bytes_out)

    def cancel(self, request_id: str, epoch: int | None, error: PunaError | None = None) -> bool:
        """End the work on a request, of one epoch or of any. False if it is not here."""
        why = error or Cancelled("the request was cancelled")
        found = self.waiting.find(request_id)
        if found is not None and epoch in (None, found.work.head.epoch) and self.waiting.remove(found):
            self._refuse(found.work, found.reply, why)
            return True
        running = self._running.get(request_id)
        if running is None or epoch not in (None, running.work.head.epoch):
            return False
        running.abandon(why)
        return True

    # -- engines and slots -------------------------------------------------------------------------------------------
    def engine_changed(self, engine: ServingEngine) -> None:
        """An engine came, got ready, stopped being so, or is no longer one of this node's."""
        engine_id, model = engine.engine_id, engine.spec.model
        known = self._known.get(engine_id) is engine
        if self._engines.engines.get(engine_id) is engine:
            if not known:
                self._known[engine_id] = engine
                self.slots.add(engine_id, model, engine.spec.slots, engine.spec.devices)
            self.slots.set_ready(engine_id, engine.client is not None)
        elif known:  # not for the last words of one whose id another engine has by now
            del self._known[engine_id]
            self.slots.remove(engine_id)
        self._deaths.changed(engine)
        self._hold.engine_changed(engine)
        self.refresh(model)

    def refresh(self, model: str) -> None:
        """The model's engines or slots changed: who waits here comes first."""
        if self.waiting and self.slots.free(model):
            self._serve_waiting(model)
        self._on_change(model)

    def _serve_waiting(self, model: str) -> None:
        """One that no engine may take now, as a suspect, is passed over."""
        now = self._clock()
        for waiting in self.waiting.of(model):
            if waiting.work.claim.lost(now):
                self._hold.let_go(waiting)
                continue
            engine = self._pick(waiting.work)
            if engine is not None and self.waiting.remove(waiting):
                self._serve(waiting.work, waiting.reply, engine)

    # -- time and the end --------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Deadlines, and what replies have to do."""
        for inference in tuple(self._running.values()):
            inference.tick(now)
            if inference.work.origin == "http":
                inference.reply.tick(now)
        self._hold.tick(now)
        self.starts.tick(now)

    @property
    def active(self) -> int:
        """Requests in engines."""
        return len(self._running)

    def close(self) -> None:
        """Nothing new is served from here on; what waits is refused."""
        self.slots.closed = True
        self._hold.empty(Unavailable(f"node {self._node} is draining", retry_after_s=1.0))

    def abandon_all(self) -> None:
        """What still runs ends now, with an error that another node may mend."""
        for inference in tuple(self._running.values()):
            inference.abandon(Unavailable(f"node {self._node} is stopping", retry_after_s=1.0))

    def pressure(self) -> Pressure:
        """For the heartbeat."""
        return self.tally.pressure(active=self.active, waiting=len(self.waiting))
