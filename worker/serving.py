"""What the dispatcher decides is done here: slots are taken, engines asked, requests passed on, given back or refused.

The one owner of what runs on this node. All but the way into the line is plain calls.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Protocol

from bus.connection import Bus
from bus.watched import Tasks
from schemas.errors import Cancelled, DeadlineExceeded, ModelLoading, PunaError, Unavailable
from schemas.node import Pressure
from schemas.reply import Accept
from schemas.subjects import INTERACTIVE
from web.client import Client
from worker.dispatcher import Decision, Question, decide
from worker.enginespec import EngineSpec
from worker.inference import Inference
from worker.metrics import Metrics
from worker.replies import Replies
from worker.reply import Reply
from worker.slots import Slots
from worker.waiting import Waiting, WaitingRoom
from worker.work import Work

log = logging.getLogger(__name__)

SERVICE_TIMES_KEPT: Final = 64
OWN_PIECE_BYTES: Final = 1 << 16


class ServingEngine(Protocol):
    """What serving needs of an engine."""

    engine_id: str
    spec: EngineSpec

    @property
    def client(self) -> Client | None:
        """The way to it while it is ready."""
        ...


class Serving:
    """Everything that runs or waits here. `on_change` is called when slots are taken or freed."""

    def __init__(
        self,
        node: str,
        bus: Bus,
        engines: Mapping[str, ServingEngine],
        *,
        replies: Replies,
        tasks: Tasks,
        metrics: Metrics,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self.slots = Slots({model: engine.spec.slots for model, engine in engines.items()})
        self.waiting = WaitingRoom()
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
        self._running: dict[str, Inference] = {}
        self._service_s: deque[float] = deque(maxlen=SERVICE_TIMES_KEPT)
        self._completed = self._failed = 0

    # -- requests come -----------------------------------------------------------------------------------------------
    def take(self, work: Work, reply: Reply | None = None) -> None:
        """One request. `reply` is where an answer goes that does not travel over NATS."""
        decision = decide(self._question(work))
        if decision.ends_older:
            self._running[work.head.request_id].abandon(Cancelled("a later attempt at the request came"))
        self._act(decision, work, reply)

    def _question(self, work: Work) -> Question:
        model, running = work.model, self._running.get(work.head.request_id)
        engine = self._engines.get(model)
        return Question(
            origin=work.origin,
            node=self._node,
            model=model,
            framed=work.head.framed,
            serves=engine is not None,
            free=self.slots.free(model),
            ready=engine is not None and engine.client is not None,
            draining=self.slots.closed,
            time_left_s=work.deadline_at - self._clock(),
            waiting=self.waiting.count(model),
            epoch=work.head.epoch,
            running_epoch=running.work.head.epoch if running else None,
        )

    def _act(self, decision: Decision, work: Work, reply: Reply | None) -> None:
        self._metrics.decisions.labels(work.origin, decision.verb).inc()
        if decision.verb == "serve":
            self._serve(work, reply or self._bus_reply(work))
        elif decision.verb == "wait" and reply is not None:
            self.waiting.add(Waiting(work, reply))
        elif decision.verb == "give_back":
            work.claim.give_back(decision.delay_s)
        elif decision.verb == "line":
            self._tasks.start(f"line {work.head.request_id}", self._into_line(work))
        elif decision.verb == "drop":
            work.claim.settle()
        elif decision.error is not None:
            self._refuse(work, reply or self._bus_reply(work), decision.error)

    def _bus_reply(self, work: Work) -> Reply:
        engine = self._engines.get(work.model)
        if engine is None:
            return self._replies.make(work, Accept(node=self._node))
        device = ",".join(engine.spec.devices)
        return self._replies.make(work, Accept(node=self._node, engine=engine.engine_id, device=device))

    def _serve(self, work: Work, reply: Reply) -> None:
        client = self._engines[work.model].client
        if client is None:
            return self._refuse(work, reply, Unavailable(f"the engine of {work.model} has just stopped"))
        piece_bytes = self._bus.max_payload // 4 if work.origin != "http" else OWN_PIECE_BYTES
        inference = Inference(work, reply, self._done, piece_bytes=piece_bytes, clock=self._clock)
        self.slots.take(work.model, inference)
        self._running[work.head.request_id] = inference
        self.idle.clear()
        inference.begin(client)
        self._on_change()
        return None

    def _refuse(self, work: Work, reply: Reply, error: PunaError) -> None:
        work.claim.settle()
        reply.error(error)
        self._tell(work, error, {})

    async def _into_line(self, work: Work) -> None:
        """A request that no slot is free for goes to whoever has one first."""
        left_s = work.deadline_at - self._clock()
        head = replace(work.head, deadline_s=max(left_s, 0.001))
        names = self._bus.names
        try:
            await self._bus.js_publish(
                names.queue(INTERACTIVE, work.model),
                work.body,
                headers=head.headers(),
                msg_id=f"{head.request_id}.{head.epoch}",
                ttl_s=max(left_s, 1.0),
            )
        except PunaError as error:
            self._refuse(work, self._bus_reply(work), error)

    # -- requests end ------------------------------------------------------------------------------------------------
    def _done(self, inference: Inference) -> None:
        work, error = inference.work, inference.outcome
        self.slots.release(work.model, inference)
        if self._running.get(work.head.request_id) is inference:
            del self._running[work.head.request_id]
        if not self.slots.busy_total:
            self.idle.set()
        if error is None:
            self._completed += 1
            self._service_s.append(inference.summary.total_s)
        elif not isinstance(error, Cancelled):
            self._failed += 1
        self._metrics.ended(inference)
        self._tell(work, error, _facts(inference))
        self.refresh(work.model)

    def _tell(self, work: Work, error: PunaError | None, facts: dict[str, object]) -> None:
        """The one log line of a request: names and numbers."""
        line: dict[str, object] = {
            "event": "request",
            "request": work.head.request_id,
            "epoch": work.head.epoch,
            "model": work.model,
            "op": work.head.op,
            "origin": work.origin,
            "tenant": work.head.tenant,
            "outcome": error.code if error else "ok",
        }
        log.info("request", extra=line | facts)

    def refresh(self, model: str) -> None:
        """The model's engine or slots changed: who waits here comes first."""
        engine = self._engines[model]
        self.slots.set_ready(model, engine.client is not None)
        while self.slots.free(model) > 0 and (next_one := self.waiting.next(model)) is not None:
            self._serve(next_one.work, next_one.reply)
        self._on_change()

    def cancel(self, request_id: str, epoch: int | None, error: PunaError | None = None) -> bool:
        """End the work on a request, of one epoch or of any. False if it is not here."""
        why = error or Cancelled("the request was cancelled")
        found = self.waiting.find(request_id)
        if found is not None and self.waiting.remove(found):
            self._refuse(found.work, found.reply, why)
            return True
        running = self._running.get(request_id)
        if running is None or epoch not in (None, running.work.head.epoch):
            return False
        running.abandon(why)
        return True

    # -- time and the end --------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Deadlines, and what replies have to do."""
        for inference in tuple(self._running.values()):
            inference.tick(now)
        for each in self.waiting:
            each.reply.tick(now)
            if now >= each.work.deadline_at and self.waiting.remove(each):
                self._refuse(each.work, each.reply, self._too_late(each.work.model))
        for inference in tuple(self._running.values()):
            if inference.work.origin == "http":
                inference.reply.tick(now)

    def _too_late(self, model: str) -> PunaError:
        if self._engines[model].client is None:
            return ModelLoading(f"{model} was not ready before the request's deadline", retry_after_s=5.0)
        return DeadlineExceeded(f"no slot of {model} was free before the request's deadline")

    @property
    def active(self) -> int:
        """Requests in engines."""
        return len(self._running)

    def close(self) -> None:
        """Nothing new is served from here on; what waits is refused."""
        self.slots.closed = True
        for each in self.waiting:
            self.waiting.remove(each)
            self._refuse(each.work, each.reply, Unavailable(f"node {self._node} is draining", retry_after_s=1.0))

    def abandon_all(self) -> None:
        """What still runs ends now, with an error that another node may mend."""
        for inference in tuple(self._running.values()):
            inference.abandon(Unavailable(f"node {self._node} is stopping", retry_after_s=1.0))

    def pressure(self) -> Pressure:
        """For the heartbeat."""
        median = statistics.median(self._service_s) if self._service_s else None
        return Pressure(
            active=self.active,
            waiting=len(self.waiting),
            completed_total=self._completed,
            failed_total=self._failed,
            service_seconds_median=median,
        )


def _facts(inference: Inference) -> dict[str, object]:
    summary = inference.summary
    first_s = summary.first_data_s
    return {
        "status": inference.status,
        "waited_ms": round(summary.waited_s * 1000, 1),
        "first_data_ms": None if first_s is None else round(first_s * 1000, 1),
        "total_ms": round(summary.total_s * 1000, 1),
        "bytes_out": inference.bytes_out,
    }
