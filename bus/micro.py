"""A NATS micro service (ADR-32): found by `nats micro ls`, asked with `nats req`, counted in `nats micro stats`.

Rules: a handler that answers at once runs in the socket's callback; one that awaits gets a task of its own, at most
so many an endpoint and for so long. A requester always gets an answer, an error as headers and OpenAI body. Nothing
that a requester sent, and no text of an exception that is not ours, ends up in an answer, in `last_error` or in a log.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from bus.connection import FAULT_LOG_S, Bus, Message, Subscription, described
from bus.message import check_subscription
from schemas.errors import BodyTooLarge, BusUnavailable, DeadlineExceeded, InvalidName, PunaError, Unavailable
from schemas.subjects import H_SERVICE_ERROR, H_SERVICE_ERROR_CODE

log = logging.getLogger(__name__)

Handler = Callable[[Message], Awaitable[bytes] | bytes]

SERVICE_PREFIX: Final = "$SRV"
DEFAULT_QUEUE: Final = "q"
"""The queue group of all micro services' endpoints that ask for no other."""
RUNNING_LIMIT_REQUESTS: Final = 16
HANDLER_TIMEOUT_S: Final = 120.0
START_FLUSH_S: Final = 2.0
STOP_GRACE_S: Final = 1.0
_CANCEL_WAIT_S: Final = 1.0
_ERROR_TEXT_CHARS: Final = 200
_H_RETRY_AFTER: Final = "Retry-After"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION: Final = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_PRE}(?:\.{_PRE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


class Service:
    """One instance of the service `name`. Endpoints may be added before and after `start`."""

    def __init__(
        self,
        bus: Bus,
        *,
        name: str,
        version: str,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
        prefix: str = SERVICE_PREFIX,
    ) -> None:
        """Raises `InvalidName` for a name that is not `A-Za-z0-9_-` or a version that is not semantic."""
        if not _VERSION.fullmatch(version):
            raise InvalidName(f"version {version[:40]!r} of service {name[:40]!r} is not semantic; write it as 1.2.3")
        self.name: Final = _checked_name(name)
        self.id: Final = secrets.token_hex(11)
        self.version: Final = version
        self._description: Final = description
        self._metadata: Final = dict(metadata or {})
        self._prefix: Final = prefix
        self._bus: Final = bus
        self._started = _now()
        self._endpoints: list[Endpoint] = []
        self._control: list[Subscription] = []

    def endpoint(
        self,
        name: str,
        subject: str,
        handler: Handler,
        *,
        metadata: Mapping[str, str] | None = None,
        queue: str | None = DEFAULT_QUEUE,
        running_limit_requests: int = RUNNING_LIMIT_REQUESTS,
        timeout_s: float = HANDLER_TIMEOUT_S,
    ) -> None:
        """Answer `subject` with what `handler` returns or, if that is awaitable, with what it comes to.

        A `PunaError` from the handler is answered as it is, any other error as a 500. `queue=None`: every instance
        answers. More than `running_limit_requests` awaitables at a time are refused with 503 and `Retry-After`;
        one that takes over `timeout_s` is cancelled and answered with 504. Raises `InvalidName`.
        """
        check_subscription(subject, queue)
        endpoint = Endpoint(
            self._bus,
            {"name": _checked_name(name), "subject": subject, "queue_group": queue or ""},
            handler,
            title=f"{self.name}.{name}",
            metadata=dict(metadata or {}),
            running_limit_requests=running_limit_requests,
            timeout_s=timeout_s,
        )
        self._endpoints.append(endpoint)
        if self._control:
            endpoint.listen()

    async def start(self) -> None:
        """Listen, and wait until the server knows it. Without a connection all is in place for the next one."""
        if self._control:
            return
        self._started = _now()
        for verb, answer in (("PING", self.ping), ("INFO", self.info), ("STATS", self.stats)):
            for subject in self._verb_subjects(verb):
                self._control.append(self._bus.subscribe(subject, self._on(answer)))
        for endpoint in self._endpoints:
            endpoint.listen()
        try:
            await self._bus.flush(START_FLUSH_S)
        except BusUnavailable as error:
            log.info("service waits for NATS", extra={"event": "micro.waits", "service": self.name, "code": error.code})

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Take no more, let what runs end within `grace_s` seconds, answer the rest with 503. May be called twice."""
        for endpoint in self._endpoints:
            endpoint.close()
        await asyncio.gather(*(endpoint.end(grace_s) for endpoint in self._endpoints))
        for subscription in self._control:
            subscription.close()
        self._control.clear()

    def reset(self) -> None:
        """Begin to count anew."""
        self._started = _now()
        for endpoint in self._endpoints:
            endpoint.tally = Tally()

    @property
    def subjects(self) -> list[str]:
        """All that the service subscribes to, for a check of permissions."""
        control = [subject for verb in ("PING", "INFO", "STATS") for subject in self._verb_subjects(verb)]
        return control + [endpoint.identity["subject"] for endpoint in self._endpoints]

    def ping(self) -> dict[str, Any]:
        """The answer to PING."""
        return self._identity("ping")

    def info(self) -> dict[str, Any]:
        """The answer to INFO."""
        endpoints = [{**endpoint.identity, "metadata": endpoint.metadata} for endpoint in self._endpoints]
        return self._identity("info") | {"description": self._description, "endpoints": endpoints}

    def stats(self) -> dict[str, Any]:
        """The answer to STATS; times in nanoseconds."""
        endpoints = [endpoint.stats() for endpoint in self._endpoints]
        return self._identity("stats") | {"started": self._started, "endpoints": endpoints}

    def _identity(self, kind: str) -> dict[str, Any]:
        service = {"name": self.name, "id": self.id, "version": self.version}
        return {"type": f"io.nats.micro.v1.{kind}_response", **service, "metadata": self._metadata}

    def _verb_subjects(self, verb: str) -> list[str]:
        every = f"{self._prefix}.{verb}"
        return [every, f"{every}.{self.name}", f"{every}.{self.name}.{self.id}"]

    def _on(self, answer: Callable[[], dict[str, Any]]) -> Callable[[Message], None]:
        def handler(message: Message) -> None:
            _send(self._bus, message.reply, orjson.dumps(answer()), None)

        return handler


@dataclass(slots=True)
class Tally:
    """What one endpoint has done since the service started or was reset. A request counts when it is answered."""

    requests: int = 0
    errors: int = 0
    refused: int = 0
    last_error: str = ""
    processing_ns: int = 0

    def add(self, took_ns: int, error: PunaError | None) -> None:
        """One more. Of an error its status and code are kept: its message may name what was asked for."""
        self.requests += 1
        self.processing_ns += took_ns
        if error is not None:
            self.errors += 1
            self.last_error = f"{error.http_status}:{error.code}"


class Endpoint:
    """Owner of one endpoint's subscription, of its running handlers and of its tally."""

    def __init__(
        self,
        bus: Bus,
        identity: dict[str, str],
        handler: Handler,
        *,
        title: str,
        metadata: dict[str, str],
        running_limit_requests: int,
        timeout_s: float,
    ) -> None:
        self.identity: Final = identity
        self.metadata: Final = metadata
        self.tally = Tally()
        self._bus: Final = bus
        self._title: Final = title
        self._handler: Final = handler
        self._running_limit_requests: Final = running_limit_requests
        self._timeout_s: Final = timeout_s
        self._subscription: Subscription | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._fault_logged_s = -math.inf

    def listen(self) -> None:
        """Begin to answer."""
        if self._subscription is None:
            subject, queue = self.identity["subject"], self.identity["queue_group"] or None
            self._subscription = self._bus.subscribe(subject, self._received, queue=queue)

    def close(self) -> None:
        """Take no more."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    async def end(self, grace_s: float) -> None:
        """Until nothing runs; what still does after `grace_s` is cancelled."""
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        left = set(self._running)
        for task in left:
            task.cancel()
        if left and (await asyncio.wait(left, timeout=_CANCEL_WAIT_S))[1]:
            log.error("handler ignores its end", extra={"event": "micro.handler_stuck", "endpoint": self._title})

    def stats(self) -> dict[str, Any]:
        """Its part of STATS."""
        tally, running = self.tally, len(self._running)
        return self.identity | {
            "num_requests": tally.requests,
            "num_errors": tally.errors,
            "last_error": tally.last_error,
            "processing_time": tally.processing_ns,
            "average_processing_time": tally.processing_ns // max(tally.requests, 1),
            "data": {"running": running, "running_limit": self._running_limit_requests, "refused": tally.refused},
        }

    def _received(self, message: Message) -> None:
        begun_ns = time.perf_counter_ns()
        if len(self._running) >= self._running_limit_requests:
            self.tally.refused += 1
            text = f"{self._title} works on {self._running_limit_requests} requests, its limit; try again soon"
            return self._settle(message, begun_ns, Unavailable(text, retry_after_s=1.0))
        try:
            answer = self._handler(message)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (answered, counted and logged)
            return self._settle(message, begun_ns, self._failure(error))
        if isinstance(answer, Awaitable):
            return self._spawn(message, begun_ns, answer)
        return self._settle(message, begun_ns, answer)

    def _spawn(self, message: Message, begun_ns: int, answer: Awaitable[bytes]) -> None:
        task = asyncio.create_task(self._work(message, begun_ns, answer), name=f"micro {self._title}")
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log_fault(error)

    async def _work(self, message: Message, begun_ns: int, answer: Awaitable[bytes]) -> None:
        outcome: bytes | PunaError
        limit = asyncio.timeout(self._timeout_s)
        try:
            async with limit:
                outcome = await answer
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                self._settle(message, begun_ns, Unavailable(f"{self._title} is stopping", retry_after_s=1.0))
                raise
            outcome = self._failure(error)
        except Exception as error:  # noqa: BLE001 (answered, counted and logged)
            outcome = self._too_slow() if limit.expired() else self._failure(error)
        self._settle(message, begun_ns, outcome)

    def _too_slow(self) -> PunaError:
        return DeadlineExceeded(f"{self._title} did not finish within {self._timeout_s:g} s")

    def _failure(self, error: BaseException) -> PunaError:
        if isinstance(error, PunaError):
            return error
        self._log_fault(error)
        return PunaError(f"{self._title} failed; its log says where")

    def _log_fault(self, error: BaseException) -> None:
        now_s = time.monotonic()
        if now_s - self._fault_logged_s >= FAULT_LOG_S:
            self._fault_logged_s = now_s
            extra = {"event": "micro.handler_failed", "endpoint": self._title}
            log.error("handler failed: %s", described(error), extra=extra)

    def _settle(self, message: Message, begun_ns: int, outcome: object) -> None:
        if not isinstance(outcome, bytes | PunaError):
            outcome = PunaError(f"{self._title} made an answer of {type(outcome).__name__} instead of bytes")
        failed = _answer(self._bus, message.reply, outcome)
        self.tally.add(time.perf_counter_ns() - begun_ns, failed)


def error_headers(error: PunaError) -> dict[str, str]:
    """The headers by which a service says that its answer is an error, and when to come again."""
    headers = {H_SERVICE_ERROR: error.message[:_ERROR_TEXT_CHARS], H_SERVICE_ERROR_CODE: str(error.http_status)}
    if error.retryable and error.retry_after_s is not None:
        headers[_H_RETRY_AFTER] = str(math.ceil(error.retry_after_s))
    return headers


def _answer(bus: Bus, reply: str, outcome: bytes | PunaError) -> PunaError | None:
    """Returns what went wrong: the outcome, or with sending it."""
    if isinstance(outcome, PunaError):
        _send(bus, reply, outcome.body(), error_headers(outcome))
        return outcome
    unsent = _send(bus, reply, outcome, None)
    if isinstance(unsent, BodyTooLarge):
        text = f"the answer has {len(outcome)} bytes; the NATS server takes {bus.max_payload} (max_payload)"
        return _answer(bus, reply, BodyTooLarge(text))
    return unsent


def _send(bus: Bus, reply: str, payload: bytes, headers: dict[str, str] | None) -> PunaError | None:
    if not reply:
        return None
    try:
        bus.publish(reply, payload, headers=headers)
    except PunaError as error:
        log.info("answer unsent", extra={"event": "micro.answer_unsent", "code": error.code})
        return error
    return None


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidName(f"{name[:40]!r} cannot name a service or endpoint: use letters, digits, '_' or '-'")
    return name


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
