"""How requests went on this node: counted, and how long they took."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from schemas.errors import Cancelled, PunaError
from schemas.node import Pressure

SERVICE_TIMES_KEPT: Final = 64
TOKENS_WINDOW_S: Final = 60.0
ENGINES_KEPT: Final = 256
"""Engines of an earlier day are forgotten."""


@dataclass(frozen=True, slots=True)
class Carried:
    """Bytes over NATS: bodies of requests, and of answers."""

    received_bytes: int = 0
    sent_bytes: int = 0


NOTHING: Final = Carried()


class Tally:
    """Owner of the counts since the start of the process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun_at = clock()
        self._tokens: deque[tuple[float, int]] = deque()
        self._carried: dict[str, Carried] = {}
        self._completed = 0
        self._failed = 0
        self._service_s: deque[float] = deque(maxlen=SERVICE_TIMES_KEPT)

    def ended(self, error: PunaError | None, total_s: float) -> None:
        """One attempt that was in an engine has ended. What the requester gave up has not failed."""
        if error is None:
            self._completed += 1
            self._service_s.append(total_s)
        elif not isinstance(error, Cancelled):
            self._failed += 1

    def made(self, tokens: int) -> None:
        """So many tokens were made for a request that has just ended."""
        self._tokens.append((self._clock(), tokens))
        self._forget()

    def _forget(self) -> None:
        while self._tokens and self._tokens[0][0] <= self._clock() - TOKENS_WINDOW_S:
            self._tokens.popleft()

    @property
    def tokens_per_s(self) -> float:
        """Of the last minute, or of the time since the start if that is less."""
        self._forget()
        over_s = min(max(self._clock() - self._begun_at, 1.0), TOKENS_WINDOW_S)
        return round(sum(count for _, count in self._tokens) / over_s, 2)

    def carried(self, engine: str, received_bytes: int, sent_bytes: int) -> None:
        """A request over NATS has ended in an engine."""
        before = self._carried.pop(engine, NOTHING)
        self._carried[engine] = Carried(before.received_bytes + received_bytes, before.sent_bytes + sent_bytes)
        if len(self._carried) > ENGINES_KEPT:
            del self._carried[next(iter(self._carried))]

    def carried_by(self, engine: str) -> Carried:
        """All requests over NATS that have ended in an engine, in bytes."""
        return self._carried.get(engine, NOTHING)

    def pressure(self, *, active: int, waiting: int) -> Pressure:
        """For the heartbeat."""
        return Pressure(
            active=active,
            waiting=waiting,
            completed_total=self._completed,
            failed_total=self._failed,
            service_seconds_median=statistics.median(self._service_s) if self._service_s else None,
            tokens_per_s=self.tokens_per_s,
        )
