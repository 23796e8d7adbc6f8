"""A look at the line every two seconds: for clients that put requests into it and send no demand.

One question for all lines; a consumer is asked for only where somebody waits for a model that this node could serve and
has nothing warm of. Lines of models that are not this node's are none of its business.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from typing import Final

from bus.connection import Bus
from bus.topology import consumer_info, waiting
from schemas.errors import InvalidName, PunaError
from schemas.subjects import LANES, decode
from worker.appetite import LOOK_EVERY_S, Look

log = logging.getLogger(__name__)

JITTER: Final = 0.25
"""Of the time between two looks, either way: a fleet that was started at once must not ask at once."""
ASKED_LIMIT_MODELS: Final = 16
"""Models whose consumers are looked at in one round."""


class Backlog:
    """Looks, and tells what it saw. `of_interest()` gives the models to look for."""

    def __init__(
        self, bus: Bus, of_interest: Callable[[], Collection[str]], saw: Callable[[Look], None], *, asked_here: Asked
    ) -> None:
        self._bus = bus
        self._of_interest = of_interest
        self._saw = saw
        self._asked_here = asked_here
        self._failures = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - jitter
            models = self._of_interest()
            if models and self._bus.connected:
                await self._look_safely(models)

    async def _look_safely(self, models: Collection[str]) -> None:
        try:
            self._saw(await self.look(models))
        except PunaError as error:
            self._failures += 1
            if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th…
                facts = {"event": "backlog_unseen", "reason": error.message, "failures": self._failures}
                log.info("backlog_unseen", extra=facts)
        else:
            self._failures = 0

    async def look(self, models: Collection[str]) -> Look:
        """How many wait for these models now. Raises `PunaError`."""
        names = self._bus.names
        lines = self._lines(await waiting(self._bus, names.stream_queue, names.queue_all()))
        counts: dict[str, int] = {}
        for (_, model), count in lines.items():
            if model in models:
                counts[model] = counts.get(model, 0) + count
        abandoned = {model for model in list(counts)[:ASKED_LIMIT_MODELS] if await self._is_abandoned(model, lines)}
        return Look(counts, abandoned)

    def _lines(self, subjects: Mapping[str, int]) -> dict[tuple[str, str], int]:
        found: dict[tuple[str, str], int] = {}
        for subject, count in subjects.items():
            _, lane, token = subject.rsplit(".", 2)
            try:
                found[lane, decode(token)] = count
            except InvalidName:  # somebody else's; nobody can ask for it
                continue
        return found

    async def _is_abandoned(self, model: str, lines: Mapping[tuple[str, str], int]) -> bool:
        """Whether nobody works on the model's requests or asks for them, this node's own pulls not counted."""
        names = self._bus.names
        for lane in LANES:
            if (lane, model) not in lines:
                continue
            info = await consumer_info(self._bus, names.stream_queue, names.queue_durable(lane, model))
            if info is None:
                continue
            asking = int(info.get("num_waiting", 0)) - self._asked_here(lane, model)
            if asking > 0 or int(info.get("num_ack_pending", 0)) > 0:
                return False
        return True


Asked = Callable[[str, str], int]
"""Pulls of this node's own that stand for a lane of a model."""
