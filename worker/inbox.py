"""NATS in: the queue group, the node's own subject and the two lanes of each model's line become `Work`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import orjson

from bus.blobs import Blobs
from bus.connection import Bus, Message, Subscription
from bus.job import Job
from bus.message import error_headers
from bus.watched import Tasks
from schemas.errors import BusUnavailable, InvalidRequest, PunaError
from schemas.frame import ERROR, encode_frame
from schemas.openai import check_body, parse_object
from schemas.request import RequestHead, head_of
from schemas.subjects import H_REPLY, INTERACTIVE, WORKERS_GROUP, decode
from worker.pulling import Pulling
from worker.reply import fault_of
from worker.serving import Serving
from worker.work import Claim, Origin, Work

log = logging.getLogger(__name__)

MODELS_LOOK_S: Final = 0.5
"""How often it is looked whether the node serves other models now."""
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
    lane: str


class Inbox:
    """Owner of this node's subscriptions and pulls for requests."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        serving: Serving,
        *,
        tasks: Tasks,
        clock: Callable[[], float],
        fresh_id: Callable[[], str],
        repair: Callable[[], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._node = node
        self._serving = serving
        self._tasks = tasks
        self._blobs = Blobs(bus, bus.names.bucket_blobs)
        self._clock = clock
        self._fresh_id = fresh_id
        self._own: Subscription | None = None
        self._groups: dict[str, Subscription] = {}
        self._look_at = 0.0
        self._pulling = Pulling(bus, serving, self._job, tasks=tasks, clock=clock, repair=repair)

    async def start(self) -> None:
        """Listen, and pull for what is free."""
        own = self._bus.names.node_infer_any(self._node)
        self._own = self._bus.subscribe(own, partial(self._core, "node"))
        self._join_groups()
        self._pulling.start()

    async def stop(self) -> None:
        """Hear no requests any more. Safe to call twice."""
        if self._own is not None:
            self._own.close()
            self._own = None
        for group in self._groups.values():
            group.close()
        self._groups.clear()
        await self._pulling.stop()

    def want_for(self, model: str) -> None:
        """Slots of the model were taken or freed, or its engines changed."""
        self._pulling.want_for(model)

    def tick(self, now: float) -> None:
        """What is due by the clock."""
        if self._own is not None and now >= self._look_at:
            self._look_at = now + MODELS_LOOK_S
            self._join_groups()
        self._pulling.tick(now)

    def _join_groups(self) -> None:
        """One queue group for each model that this node can serve, whether it is loaded or not."""
        models = self._serving.models
        if len(models) == len(self._groups) and all(model in self._groups for model in models):
            return
        for model in set(self._groups).difference(models):
            self._groups.pop(model).close()
        for model in set(models).difference(self._groups):
            subject = self._bus.names.infer_any_op(model)
            self._groups[model] = self._bus.subscribe(subject, partial(self._core, "group"), queue=WORKERS_GROUP)

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
        named, head = (headers or {}).get(H_REPLY, ""), None
        answer_to = reply or (named if self._bus.names.may_answer_to(named) else "")
        try:
            if named and named != answer_to and not self._bus.names.may_answer_to(named):
                raise InvalidRequest("it must be an inbox, or under the fleet's reply subjects", param=H_REPLY)
            head = head_of(headers, op=op, reply=reply, request_id=self._fresh_id())
            lane = job.subject.rsplit(".", 2)[1] if job else INTERACTIVE
            arrival = Arrival(origin, head, decode(token), claim, job, answer_to, lane)
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
        return Work(
            head, arrival.model, body, arrival.origin, self._clock(), arrival.claim, stream, waited_s, arrival.lane
        )

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
