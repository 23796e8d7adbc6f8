"""NATS in: the queue group, the node's own subject and the two lanes of each model's line become `Work`.

Pulls stand at the server for free slots only. After a time without a free slot the interactive lane is asked first and
the batch lane `BATCH_DELAY_S` later, so that a slot that has just become free goes to whoever waits for an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import orjson

from bus.blobs import Blobs
from bus.connection import Bus, Message, Subscription
from bus.job import Job
from bus.message import error_headers
from bus.pull import WorkPull
from bus.watched import Tasks
from schemas import topology
from schemas.errors import BusUnavailable, PunaError
from schemas.frame import ERROR, encode_frame
from schemas.openai import check_body, parse_object
from schemas.request import RequestHead, head_of
from schemas.subjects import BATCH, H_REPLY, INTERACTIVE, WORKERS_GROUP, decode
from worker.reply import fault_of
from worker.serving import Serving
from worker.work import Claim, Origin, Work

log = logging.getLogger(__name__)

BATCH_DELAY_S: Final = 0.02
PULLS_LIMIT: Final = 16
"""Pulls of one lane that stand at the server, however many slots are free: each costs it a heartbeat every 2 s, and one
that was answered is replaced at once."""
BODY_FETCH_S: Final = 1.5
"""How long a body may take from the object store: less than the line's `ack_wait`, so that nobody else gets the job."""
NATIVE_UNCHECKED: Final = frozenset(("transcriptions",))
"""Operations whose body is not JSON."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message that was read as a request; its body may still be on its way."""

    origin: Origin
    head: RequestHead
    model: str
    claim: Claim
    job: Job | None
    answer_to: str


class Inbox:
    """Owner of this node's subscriptions and pulls for requests."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        models: Iterable[str],
        serving: Serving,
        *,
        tasks: Tasks,
        clock: Callable[[], float],
        fresh_id: Callable[[], str],
        repair: Callable[[], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._node = node
        self._models = tuple(models)
        self._serving = serving
        self._tasks = tasks
        self._blobs = Blobs(bus, bus.names.bucket_blobs)
        self._clock = clock
        self._fresh_id = fresh_id
        self._subscriptions: list[Subscription] = []
        self._batch_timers: dict[str, asyncio.TimerHandle] = {}
        self._pulls: dict[tuple[str, str], WorkPull] = {}
        for model in self._models:
            for lane in (INTERACTIVE, BATCH):
                self._pulls[model, lane] = WorkPull(
                    bus,
                    topology.line(bus.names, lane, model),
                    self._job,
                    name=f"{lane} {model}",
                    repair=repair,
                )

    async def start(self) -> None:
        """Listen, and pull for what is free."""
        names = self._bus.names
        for model in self._models:
            group = self._bus.subscribe(names.infer_any_op(model), partial(self._core, "group"), queue=WORKERS_GROUP)
            self._subscriptions.append(group)
        self._subscriptions.append(self._bus.subscribe(names.node_infer_any(self._node), partial(self._core, "node")))
        for pull in self._pulls.values():
            await pull.start()
        self.want()

    async def stop(self) -> None:
        """Hear no requests any more. Safe to call twice."""
        for subscription in self._subscriptions:
            subscription.close()
        self._subscriptions.clear()
        for timer in self._batch_timers.values():
            timer.cancel()
        for pull in self._pulls.values():
            await pull.stop()

    # -- asking ------------------------------------------------------------------------------------------------------
    def want(self) -> None:
        """Slots were taken or freed: ask for as many requests as there are free ones."""
        for model in self._models:
            free = self._serving.slots.free(model)
            self._pulls[model, INTERACTIVE].want(min(free, PULLS_LIMIT))
            if free == 0:
                self._want_batch(model)
            elif model not in self._batch_timers:
                loop = asyncio.get_running_loop()
                self._batch_timers[model] = loop.call_later(BATCH_DELAY_S, self._want_batch, model)

    def _want_batch(self, model: str) -> None:
        timer = self._batch_timers.pop(model, None)
        if timer is not None:
            timer.cancel()
        self._pulls[model, BATCH].want(min(self._serving.slots.free(model), PULLS_LIMIT))

    # -- requests ----------------------------------------------------------------------------------------------------
    def _core(self, origin: Origin, message: Message) -> None:
        """`…infer.<op>.<model>`, to the group or to this node."""
        _, op, token = message.subject.rsplit(".", 2)
        self._receive(origin, message.headers, message.payload, message.reply, op=op, token=token, job=None)

    def _job(self, job: Job) -> None:
        token = job.subject.rpartition(".")[2]
        self._receive("line", job.headers, job.payload, "", op=None, token=token, job=job)

    def _receive(
        self,
        origin: Origin,
        headers: Mapping[str, str] | None,
        payload: bytes,
        reply: str,
        *,
        op: str | None,
        token: str,
        job: Job | None,
    ) -> None:
        claim = Claim(job, self._clock())
        answer_to = reply or (headers or {}).get(H_REPLY, "")
        head: RequestHead | None = None
        try:
            head = head_of(headers, op=op, reply=reply, request_id=self._fresh_id())
            arrival = Arrival(origin, head, decode(token), claim, job, answer_to)
        except PunaError as error:
            self._turn_away(claim, head, answer_to, error)
            return
        if head.blob is None:
            self._admit(arrival, payload)
        else:
            self._tasks.start(f"body {head.request_id}", self._fetch(arrival, head.blob))

    async def _fetch(self, arrival: Arrival, blob: str) -> None:
        """The body was too large for a message: it lies in the object store."""
        try:
            async with asyncio.timeout(BODY_FETCH_S):
                body = await self._blobs.get(blob)
        except TimeoutError:
            error = BusUnavailable(f"the body did not arrive from the object store within {BODY_FETCH_S:g} s")
            self._turn_away(arrival.claim, arrival.head, arrival.answer_to, error)
        except PunaError as error:
            self._turn_away(arrival.claim, arrival.head, arrival.answer_to, error)
        else:
            self._admit(arrival, body)

    def _admit(self, arrival: Arrival, body: bytes) -> None:
        try:
            work = self._work(arrival, body)
        except PunaError as error:
            self._turn_away(arrival.claim, arrival.head, arrival.answer_to, error)
            return
        self._serving.take(work)

    def _turn_away(self, claim: Claim, head: RequestHead | None, answer_to: str, error: PunaError) -> None:
        claim.drop(error.code)
        self._refuse(head, answer_to, error)

    def _work(self, arrival: Arrival, body: bytes) -> Work:
        head, job, stream = arrival.head, arrival.job, None
        if not head.framed and head.op not in NATIVE_UNCHECKED:
            body, stream = checked(head.op, arrival.model, body)
        waited_s = max(time.time() - job.published_at, 0.0) if job else 0.0
        return Work(head, arrival.model, body, arrival.origin, self._clock(), arrival.claim, stream, waited_s)

    def _refuse(self, head: RequestHead | None, subject: str, error: PunaError) -> None:
        """The request cannot even be read: say so, if there is anybody to say it to."""
        log.info("bad_request", extra={"event": "bad_request", "code": error.code, "param": error.param})
        if not subject:
            return
        try:
            if head is not None and head.framed:
                self._bus.publish(subject, encode_frame(ERROR, head.epoch, 1, fault_of(error, 0).encode()))
            else:
                self._bus.publish(subject, error.body(), headers=error_headers(error))
        except BusUnavailable as lost:
            log.warning("refusal_unsent", extra={"event": "refusal_unsent", "reason": lost.code})


def checked(op: str, model: str, body: bytes) -> tuple[bytes, bool]:
    """The body that a plain client sent, with the model of its subject if it names none, and whether it is for a
    stream. Raises what `schemas.openai.check_body` raises."""
    found = parse_object(body)
    if "model" not in found:
        body = orjson.dumps({"model": model} | found)
    return body, check_body(op, body).stream
