"""One endpoint of a micro service: its subscription, its running handlers, its tally, its answers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from bus.connection import FAULT_LOG_S, Bus, Message, Subscription, described
from bus.message import error_headers
from schemas.errors import BodyTooLarge, DeadlineExceeded, PunaError, Unavailable

log = logging.getLogger(__name__)

Handler = Callable[[Message], Awaitable[bytes] | bytes]

_CANCEL_WAIT_S: Final = 1.0


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


def _answer(bus: Bus, reply: str, outcome: bytes | PunaError) -> PunaError | None:
    """Returns what went wrong: the outcome, or with sending it."""
    if isinstance(outcome, PunaError):
        send(bus, reply, outcome.body(), error_headers(outcome))
        return outcome
    unsent = send(bus, reply, outcome, None)
    if isinstance(unsent, BodyTooLarge):
        text = f"the answer has {len(outcome)} bytes; the NATS server takes {bus.max_payload} (max_payload)"
        return _answer(bus, reply, BodyTooLarge(text))
    return unsent


def send(bus: Bus, reply: str, payload: bytes, headers: dict[str, str] | None) -> PunaError | None:
    """Answer on `reply`, if there is one. Returns why that could not be done; it is logged."""
    if not reply:
        return None
    try:
        bus.publish(reply, payload, headers=headers)
    except PunaError as error:
        log.info("answer unsent", extra={"event": "micro.answer_unsent", "code": error.code})
        return error
    return None
