"""How requests went on this node: counted, and how long they took."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Final

from schemas.errors import Cancelled, PunaError
from schemas.node import Pressure

SERVICE_TIMES_KEPT: Final = 64


class Tally:
    """Owner of the counts since the start of the process."""

    def __init__(self) -> None:
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

    def pressure(self, *, active: int, waiting: int) -> Pressure:
        """For the heartbeat."""
        return Pressure(
            active=active,
            waiting=waiting,
            completed_total=self._completed,
            failed_total=self._failed,
            service_seconds_median=statistics.median(self._service_s) if self._service_s else None,
        )
