"""Requests that wait on this node: jobs of the line that an engine is started for, and those of the own HTTP.

A held job's claim is kept alive. It is served by the engine that it started, first come, first served, or given back
when none comes of it. One whose claim was lost (we were frozen, the server was gone) is somebody else's: it is let go
without a word, for the server hands it out again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from schemas.errors import DeadlineExceeded, ModelLoading, PunaError, Unavailable
from schemas.node import Offer
from worker.engines import Engines, ServingEngine
from worker.plans import Cannot, Evict, Fits, Wait, Yield
from worker.reply import Reply
from worker.slots import Slots
from worker.standing import Standing, standing
from worker.starts import Starts
from worker.waiting import Waiting, WaitingRoom
from worker.work import Work

log = logging.getLogger(__name__)

DENIED_DELAY_S: Final = 0.2
"""A job that we may not start an engine for comes back after this: everybody else may just have been told the same."""
START_WAIT_S: Final = 10.0
"""A held job whose engine has not begun to start by then is given back: others may have room."""
LOOK_EVERY_S: Final = 0.5
RETRY_AFTER_S: Final = 5.0

Refuse = Callable[[Work, Reply | None, PunaError], None]


class Hold:
    """Owner of the requests that wait. `refuse` tells a requester that there will be no answer."""

    def __init__(self, engines: Engines, slots: Slots, starts: Starts, room: WaitingRoom, refuse: Refuse) -> None:
        self._engines = engines
        self._slots = slots
        self._starts = starts
        self._room = room
        self._refuse = refuse
        self._look_at = 0.0

    # -- requests come -----------------------------------------------------------------------------------------------
    def hold(self, work: Work) -> None:
        """A job of the line for a model that no engine here can serve now, and that one could be started for."""
        waiting = Waiting(work, None)
        self._room.add(waiting)
        self._starts.ask(work.model, work.head.request_id, lambda granted: self._answered(waiting, granted))

    def _answered(self, waiting: Waiting, granted: bool) -> None:
        if not granted and self._room.remove(waiting):
            waiting.work.claim.give_back(DENIED_DELAY_S)

    def wait(self, work: Work, reply: Reply) -> None:
        """A request of the own HTTP. It needs no lease: its client came to this very node."""
        failing = self._failing(work.model)
        if failing is not None:
            self._refuse(work, reply, failing)
            return
        self._room.add(Waiting(work, reply))
        if not self._on_its_way(work.model):
            self._engines.want(work.model, f"request {work.head.request_id} over HTTP")

    def again(self, work: Work) -> bool:
        """The line brings a request that is held already, or a later attempt at it: the newer claim counts."""
        found = self._room.find(work.head.request_id) if len(self._room) else None
        if found is None or not found.work.claim.held:
            return False
        older = found.work
        if work.head.epoch < older.head.epoch:
            work.claim.settle()
            return True
        if work.head.epoch == older.head.epoch:
            older.claim.forget()
        else:
            older.claim.settle()
        found.work = replace(work, received_at=older.received_at)
        return True

    # -- what becomes of them ----------------------------------------------------------------------------------------
    def engine_changed(self, engine: ServingEngine) -> None:
        """An engine failed for good: who waits for it need not wait any longer."""
        if engine.state == "crashed" and self._room.count(engine.spec.model):
            self._give_up(engine.spec.model)

    def _give_up(self, model: str) -> None:
        failing = self._failing(model)
        if failing is not None:
            self._starts.failed(model)
            for each in self._room.of(model):
                self._release(each, failing)

    def _release(self, waiting: Waiting, why: PunaError, delay_s: float = 0.0) -> None:
        """Back into the line, or refused where there is none behind it."""
        if not self._room.remove(waiting):
            return
        if waiting.work.claim.held:
            facts = {"event": "given_back", "request": waiting.work.head.request_id, "reason": why.message}
            log.info("given_back", extra=facts)
            waiting.work.claim.give_back(delay_s)
        else:
            self._refuse(waiting.work, waiting.reply, why)

    def empty(self, why: PunaError) -> None:
        """The node drains: nobody waits here any more."""
        for each in self._room:
            self._release(each, why)

    # -- time --------------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> None:
        """Claims, deadlines, keep-alives, and engines that do not come."""
        for each in self._room:
            claim = each.work.claim
            if claim.lost(now):
                self.let_go(each)
                continue
            claim.keep(now)
            if each.reply is not None:
                each.reply.tick(now)
            if now >= each.work.deadline_at and self._room.remove(each):
                self._refuse(each.work, each.reply, self._too_late(each.work.model))
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            for model in {each.work.model for each in self._room}:
                self._look(model, now)

    def let_go(self, waiting: Waiting) -> None:
        """The claim was lost: somebody else has the job, or will."""
        if self._room.remove(waiting):
            waiting.work.claim.forget()
            log.warning("claim_lost", extra={"event": "claim_lost", "request": waiting.work.head.request_id})

    def _look(self, model: str, now: float) -> None:
        """Whether an engine still comes of it."""
        if self._on_its_way(model):
            return
        self._give_up(model)
        for each in self._room.of(model):
            if each.work.claim.held and now - each.work.received_at > START_WAIT_S:
                self._starts.failed(model)
                self._release(each, Unavailable(f"model {model}: no engine began to start in {START_WAIT_S:g} s"))
        if (first := self._room.first(model)) is not None and not self._starts.asking(model):
            waited_s = now - first.work.received_at + first.work.waited_s
            self._engines.want(model, f"request {first.work.head.request_id}", waited_s=waited_s)

    # -- why ---------------------------------------------------------------------------------------------------------
    def _on_its_way(self, model: str) -> bool:
        return self._engines.starting(model) or self._slots.ready(model)

    def _failing(self, model: str) -> PunaError | None:
        """Why no engine of the model can be had on this node for longer than it is worth waiting; None: one can."""
        if self._on_its_way(model):
            return None
        plan = self._engines.plan(model)
        if isinstance(plan, Fits | Evict | Yield):
            return None
        for engine in self._engines.of(model):
            told = engine.snapshot()
            if told.state == "crashed" and (told.unfit or told.breaker_open):
                left_s = (told.next_retry_at or 0.0) - time.time()
                text = f"model {model}: its engine is crashed: {told.reason or 'no reason'}"
                return Unavailable(text, retry_after_s=max(left_s, 1.0) if told.next_retry_at else RETRY_AFTER_S)
        return Unavailable(f"model {model}: {plan.reason}") if isinstance(plan, Cannot) else None

    def _too_late(self, model: str) -> PunaError:
        if self._slots.ready(model):
            return DeadlineExceeded(f"no slot of {model} was free before the request's deadline")
        text = f"{model} was not ready before the request's deadline{self._why(model)}"
        error = ModelLoading(text, retry_after_s=RETRY_AFTER_S)
        error.loading = self._standing(model).told()
        return error

    def _standing(self, model: str) -> Standing:
        plan = self._engines.plan(model)
        reason = plan.reason if isinstance(plan, Cannot | Wait | Yield) else None
        offer = Offer(model=model, never=isinstance(plan, Cannot), reason=reason)
        return standing([each.snapshot() for each in self._engines.of(model)], offer)

    def _why(self, model: str) -> str:
        for engine in self._engines.of(model):
            told = engine.snapshot()
            done = "" if told.progress is None else f", {told.progress:.0%} done"
            return f": its engine is {told.state}{done}" + (f" ({told.reason})" if told.reason else "")
        plan = self._engines.plan(model)
        return f": {plan.reason}" if isinstance(plan, Cannot | Wait | Yield) else ""
