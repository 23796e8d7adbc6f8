"""What happened on this node, for whoever follows `puna.event.>` or reads back the last seven days.

An event is a hint for people and tools; the heartbeat is the truth. So one that cannot be sent is logged and let go.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import orjson

from bus.connection import Bus
from schemas.errors import BusUnavailable
from worker.engine import Engine

log = logging.getLogger(__name__)


class Events:
    """Tells them. Knows the last state of each engine, as a change of reason alone is no event."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node
        self._states: dict[str, str] = {}

    def tell(self, kind: str, **facts: Any) -> None:
        """Publish `{"node", "kind", "at", …}` to the event subject; `at` is Unix seconds by this host's clock."""
        body = {"node": self._node, "kind": kind, "at": time.time()} | facts
        try:
            self._bus.publish(self._bus.names.event(self._node, kind), orjson.dumps(body))
        except BusUnavailable as error:
            log.info("event_unsent", extra={"event": "event_unsent", "kind": kind, "reason": error.code})

    def engine(self, engine: Engine) -> None:
        """An engine changed: `engine_starting`, `_ready`, `_stopping`, `_stopped` or `_crashed`, if its state did."""
        if self._states.get(engine.engine_id) == engine.state:
            return
        self._states[engine.engine_id] = engine.state
        self.tell(f"engine_{engine.state}", engine=engine.engine_id, model=engine.spec.model, reason=engine.reason)
