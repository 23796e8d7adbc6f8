"""The way into the line: for requests that this node cannot serve now, wherever they came from."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from bus.connection import Bus
from schemas.demand import Demand
from schemas.errors import BusUnavailable
from schemas.request import RequestHead
from worker.work import Work

log = logging.getLogger(__name__)

LEAST_TIME_S: Final = 0.001
LEAST_TTL_S: Final = 1.0


class Line:
    """Puts requests into it, and says that a model is wanted."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def put(self, work: Work, left_s: float, *, head: RequestHead | None = None) -> None:
        """To whoever has a free slot first; `head` replaces the request's own. Raises `PunaError`: it is not there."""
        head = replace(head or work.head, deadline_s=max(left_s, LEAST_TIME_S))
        await self._bus.js_publish(
            self._bus.names.queue(work.lane, work.model),
            work.body,
            headers=head.headers(),
            msg_id=f"{head.request_id}.{head.epoch}",
            ttl_s=max(left_s, LEAST_TTL_S),
        )

    def demand(self, model: str) -> None:
        """Nothing warm of this model can take a request here, and nobody else may know of it."""
        try:
            self._bus.publish(self._bus.names.demand(model), Demand().encode())
        except BusUnavailable as error:
            log.info("demand_unsent", extra={"event": "demand_unsent", "model": model, "reason": error.code})
