"""What happened on this node, for whoever follows `puna.event.>` or reads back the last seven days.

An event is a hint for people and tools; the heartbeat is the truth. So one that cannot be sent is logged and let go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from bus.connection import Bus
from schemas.errors import BusUnavailable
from worker.engine import Engine

log = logging.getLogger(__name__)


def _nobody(kind: str, facts: Mapping[str, Any]) -> None:
    """Nobody on this node listens."""


class Events:
    """Tells them, to `heard` on this node too. Knows the last state of each engine, as a change of reason alone is no
    event."""

    def __init__(self, bus: Bus, node: str, heard: Callable[[str, Mapping[str, Any]], None] = _nobody) -> None:
        self._bus = bus
        self._heard = heard
        self._node = node
        self._states: dict[str, str] = {}
        self._steps: dict[str, str | None] = {}
        self._breakers: set[str] = set()

    def tell(self, kind: str, **facts: Any) -> None:
        """Publish `{"node", "kind", "at", …}` to the event subject; `at` is Unix seconds by this host's clock."""
        self._heard(kind, facts)
        body = {"node": self._node, "kind": kind, "at": time.time()} | facts
        try:
            self._bus.publish(self._bus.names.event(self._node, kind), orjson.dumps(body))
        except BusUnavailable as error:
            log.info("event_unsent", extra={"event": "event_unsent", "kind": kind, "reason": error.code})

    def engine(self, engine: Engine) -> None:
        """An engine changed: `engine_starting`, `_ready` (`_adopted` if it was taken over as it ran), `_stopping`,
        `_stopped` or `_crashed`, if its state did; `engine_step` for each step of a start; `engine_breaker_open` and
        `_closed`, if its breaker did."""
        if self._states.get(engine.engine_id, "stopped") != engine.state:
            self._states[engine.engine_id] = engine.state
            self._engine("adopted" if engine.state == "ready" and engine.adopted else engine.state, engine)
        if self._steps.get(engine.engine_id) != engine.step:
            self._steps[engine.engine_id] = engine.step
            if engine.step is not None:
                self.tell("engine_step", engine=engine.engine_id, model=engine.spec.model, step=engine.step)
        if engine.breaker_open != (engine.engine_id in self._breakers):
            self._breakers ^= {engine.engine_id}
            self._engine("breaker_open" if engine.breaker_open else "breaker_closed", engine)

    def _engine(self, what: str, engine: Engine) -> None:
        reason = {"reason": engine.reason, "reason_code": engine.reason_code}
        self.tell(f"engine_{what}", engine=engine.engine_id, model=engine.spec.model, **reason)
