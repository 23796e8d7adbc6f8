"""`/v1/nodes` and `/v1/queue`: the fleet for people and programs that look after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from bus.connection import Bus
from bus.topology import waiting
from gateway.candidates import asked_by_bus
from gateway.fleet import Fleet, Model, Sighting
from schemas.errors import NotFound
from schemas.subjects import LANES

QUEUE_CACHED_S: Final = 1.0


def listing(fleet: Fleet, now: float) -> dict[str, Any]:
    """All nodes, those that went away within the last minute too."""
    seen = [*fleet.nodes.values(), *fleet.gone.values()]
    ordered = sorted(seen, key=lambda one: one.beat.node)
    return {"object": "list", "data": [entry(one, fleet, now) for one in ordered]}


def one(fleet: Fleet, node: str, now: float) -> dict[str, Any]:
    """One node. Raises `NotFound`."""
    found = fleet.nodes.get(node) or fleet.gone.get(node)
    if found is None:
        raise NotFound(f"node {node[:80]!r} is not known; GET /v1/nodes lists those that are")
    return entry(found, fleet, now)


def entry(sighting: Sighting, fleet: Fleet, now: float) -> dict[str, Any]:
    """A node's heartbeat and what this gateway thinks of it."""
    beat = sighting.beat
    state, reason = "ready", None
    if beat.node not in fleet.nodes:
        state, reason = "gone", "its heartbeat has stopped"
    elif beat.draining:
        state, reason = "draining", "it takes no new requests"
    elif not asked_by_bus(beat):
        state, reason = "reported", "it reports by HTTP and takes no work from the line"
    elif not any(engine.state == "ready" for engine in beat.engines):
        state, reason = "not ready", "none of its engines is ready" if beat.engines else "it has no engine"
    judged = {"id": beat.node, "object": "node", "state": state, "reason": reason}
    return judged | {"heard_seconds_ago": round(max(now - sighting.moved_at, 0), 1)} | beat.model_dump(mode="json")


class Queue:
    """How many wait in each line. The server is asked at most once a second, whoever looks."""

    def __init__(self, bus: Bus, fleet: Callable[[], Fleet], limit: int) -> None:
        self._bus = bus
        self._fleet = fleet
        self._limit = limit
        self._known: dict[str, Any] = {}
        self._known_until = float("-inf")
        self._lock = asyncio.Lock()

    async def listing(self) -> dict[str, Any]:
        """Every model's lines. Raises `BusUnavailable`."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() >= self._known_until:
                names = self._bus.names
                counts = await waiting(self._bus, names.stream_queue, names.queue_all())
                rows = [
                    self._row(model, lane, counts.get(names.queue(lane, model.model), 0))
                    for model in self._fleet().models.values()
                    for lane in LANES
                ]
                self._known = {"object": "list", "data": rows, **self._at_the_nodes()}
                self._known_until = loop.time() + QUEUE_CACHED_S
        return self._known

    def _at_the_nodes(self) -> dict[str, int]:
        """Requests that have left the lines, by the last heartbeats: in engines, and held for one that starts."""
        pressures = [one.beat.pressure for one in self._fleet().nodes.values()]
        return {"active": sum(each.active for each in pressures), "held": sum(each.waiting for each in pressures)}

    def _row(self, model: Model, lane: str, count: int) -> dict[str, Any]:
        starting = sum(one.engine.state == "starting" for one in model.servings) if not model.gone else 0
        return {
            "object": "queue",
            "model": model.model,
            "lane": lane,
            "waiting": count,
            "limit": self._limit,
            "slots_total": model.slots_total,
            "slots_busy": model.slots_busy,
            "engines_starting": starting,
            "state": model.state,
            "reason": model.reason,
        }
