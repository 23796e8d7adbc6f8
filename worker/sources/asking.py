"""Asking a source for its listing again, as often and as late as is right."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from worker.sources import SourceError, Throttled, origin_of
from worker.transfer.backoff import LONGEST_S, Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")
THROTTLED_S: Final = 5.0
"""A source that wants to be left alone and does not say for how long."""


class Quiet(Protocol):
    """The fleet's cool-down: origins that want to be left alone."""

    async def begin(self, origin: str, seconds: float) -> None: ...

    async def over(self, origin: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How often a source is asked again, and how long one look at it may take. `sleep` and `dice` are for tests."""

    retries: int = 10
    interval_s: float = 15.0
    look_limit_s: float = 60.0
    """For all pages of one listing."""
    quiet: Quiet | None = None
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    dice: Callable[[], float] = random.random


async def patiently(ask: Callable[[], Awaitable[T]], patience: Patience, url: str, place: str) -> T:
    """What `ask` returns, at last. Raises the `SourceError` that is not worth another try, or came too often."""
    backoff = Backoff(patience.interval_s, patience.retries)
    while True:
        try:
            if patience.quiet is not None:
                await patience.quiet.over(origin_of(url))
            return await ask()
        except SourceError as error:
            await _wait(error, patience, backoff, url, place)


async def _wait(error: SourceError, patience: Patience, backoff: Backoff, url: str, place: str) -> None:
    asked_s = THROTTLED_S if error.retry_after_s is None else error.retry_after_s
    shared = isinstance(error, Throttled) and patience.quiet is not None and asked_s > 0
    if shared and patience.quiet is not None:
        await patience.quiet.begin(origin_of(url), asked_s)
    wait_s = backoff.failed(patience.dice(), error.retry_after_s) if error.retryable else None
    if wait_s is None:
        raise error
    fields = {"event": "source_retry", "source": place, "code": error.code, "wait_s": round(wait_s, 3)}
    log.warning("source_retry", extra=fields | {"reason": error.message, "attempt": backoff.failures})
    await patience.sleep(0.0 if shared else min(wait_s, LONGEST_S * 1.1))
