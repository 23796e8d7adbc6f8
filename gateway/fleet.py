"""The fleet as this gateway sees it: an immutable view, swapped whole.

A node lives while its heartbeat's sequence moves, judged by our own clock: no remote time is ever compared. While the
bus is away no node can be heard, so none grows older; after a new session each has the whole time again, also if the
bucket came back empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, Protocol

from pydantic import ValidationError

from schemas.node import Engine, Heartbeat
from schemas.topology import NODE_TTL_S

GONE_KEPT_S: Final = 60.0
"""For how long a node that went away, and what it served, is remembered."""
NODES_LIMIT: Final = 10_000
"""Heartbeats that one view holds."""

ModelState = Literal["ready", "loading", "unavailable", "gone"]


class Value(Protocol):
    """What is read of an entry of the bucket."""

    @property
    def value(self) -> bytes:
        """The heartbeat as JSON."""
        ...

    @property
    def revision(self) -> int:
        """The bucket's own number of the write."""
        ...


@dataclass(frozen=True, slots=True)
class Sighting:
    """A node as last heard. `moved_at` is our monotonic clock when its sequence last moved."""

    beat: Heartbeat
    revision: int
    moved_at: float


@dataclass(frozen=True, slots=True)
class Serving:
    """One engine of one node that is there for a model."""

    node: str
    engine: Engine
    draining: bool

    @property
    def ready(self) -> bool:
        """It takes new requests."""
        return self.engine.state == "ready" and not self.draining

    @property
    def hopeless(self) -> bool:
        """It will not come up by itself: it is not tried again, or may not be started as things are."""
        return self.engine.state == "crashed" and (self.engine.unfit or self.engine.next_retry_at is None)


@dataclass(frozen=True, slots=True)
class Model:
    """A model and all that stands behind it on live nodes, or, if `gone`, what stood there last."""

    model: str
    created: int
    servings: tuple[Serving, ...]
    gone: bool = False
    service_s: float | None = None
    """Median time of a request, as the nodes measured it."""

    @property
    def slots_total(self) -> int:
        """Slots of engines that are ready."""
        return sum(one.engine.slots_total for one in self.servings if one.ready and not self.gone)

    @property
    def slots_busy(self) -> int:
        """Of those, how many were busy at the last heartbeat."""
        return sum(one.engine.slots_busy for one in self.servings if one.ready and not self.gone)

    @property
    def state(self) -> ModelState:
        """`ready` if any engine takes requests; `unavailable` if none does and none will without help."""
        if self.gone:
            return "gone"
        if any(one.ready for one in self.servings):
            return "ready"
        return "unavailable" if all(one.hopeless for one in self.servings) else "loading"

    @property
    def reason(self) -> str | None:
        """Why it is not ready, in the words of the engine that is nearest to it."""
        if self.state in ("ready", "gone"):
            return "the node that served it has gone" if self.gone else None
        ranks = {"starting": 0, "stopped": 1, "crashed": 2, "stopping": 3, "ready": 4}
        nearest = min(self.servings, key=lambda one: (one.draining, one.hopeless, ranks[one.engine.state]))
        if nearest.draining:
            return f"node {nearest.node} is draining"
        told = f": {nearest.engine.reason}" if nearest.engine.reason else ""
        state = "not started" if nearest.engine.unfit else nearest.engine.state
        return f"engine {state} on {nearest.node}{told}"


@dataclass(frozen=True, slots=True)
class Fleet:
    """All nodes and models at one moment."""

    nodes: Mapping[str, Sighting] = field(default_factory=lambda: MappingProxyType({}))
    gone: Mapping[str, Sighting] = field(default_factory=lambda: MappingProxyType({}))
    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    whole: bool = False
    """The first snapshot of the bucket has come: what is not here is not there."""


class Roster:
    """Turns the bucket's entries and the passing of time into `Fleet` views. Synchronous; owns no clock."""

    def __init__(self, lost_after_s: float = NODE_TTL_S) -> None:
        self.fleet = Fleet()
        self.rejected_total = 0
        """Values that were no heartbeat."""
        self._lost_after_s = lost_after_s
        self._seen: dict[str, Sighting] = {}
        self._bad: dict[str, int] = {}
        self._session_at = float("-inf")

    def session(self, now: float) -> None:
        """The bus is back: every node that lived has the whole time to be heard again."""
        self._session_at = now
        for key, one in self._seen.items():
            moved_at = now if one.beat.node in self.fleet.nodes else one.moved_at
            # A server that lost its memory counts revisions from 1 again, so none of them says "unchanged" any more.
            self._seen[key] = Sighting(one.beat, -1, moved_at)
        self._bad.clear()

    def take(self, entries: Mapping[str, Value], now: float) -> Fleet:
        """A new state of the bucket. Only what changed is parsed."""
        fresh_session = now - self._session_at < self._lost_after_s
        for key in [key for key in self._seen if key not in entries]:
            if not fresh_session:
                self._drop(key, now)
        for key, entry in entries.items():
            old = self._seen.get(key)
            if (old is None or old.revision != entry.revision) and self._bad.get(key) != entry.revision:
                self._hear(key, entry, old, now)
        return self._swap(now)

    def age(self, now: float) -> Fleet:
        """Time has passed; the same view again if nothing follows from it."""
        edge, forget = now - self._lost_after_s, now - GONE_KEPT_S
        for key in [key for key, one in self._seen.items() if one.moved_at < forget]:
            del self._seen[key]
        live = sum(_lives(one, edge) for one in self._seen.values())
        if live != len(self.fleet.nodes) or len(self._seen) - live != len(self.fleet.gone) or not self.fleet.whole:
            return self._swap(now)
        return self.fleet

    def _hear(self, key: str, entry: Value, old: Sighting | None, now: float) -> None:
        try:
            beat = Heartbeat.model_validate_json(entry.value)
        except ValidationError:
            self._bad[key] = entry.revision
            self.rejected_total += 1
            return
        self._bad.pop(key, None)
        if old is None and len(self._seen) >= NODES_LIMIT:
            self.rejected_total += 1
            return
        still = old is not None and (old.beat.boot_id, old.beat.sequence) == (beat.boot_id, beat.sequence)
        self._seen[key] = Sighting(beat, entry.revision, old.moved_at if still and old else now)

    def _drop(self, key: str, now: float) -> None:
        """The node took its key away, or the server did after its time: it is gone, whatever our clock says."""
        one = self._seen[key]
        edge = now - self._lost_after_s
        if _lives(one, edge):
            self._seen[key] = Sighting(one.beat, -1, edge - 0.001)

    def _swap(self, now: float) -> Fleet:
        edge = now - self._lost_after_s
        nodes = {one.beat.node: one for one in self._seen.values() if _lives(one, edge)}
        gone = {one.beat.node: one for one in self._seen.values() if one.beat.node not in nodes}
        models = _models(nodes.values(), gone=False)
        lost = {name: model for name, model in _models(gone.values(), gone=True).items() if name not in models}
        self.fleet = Fleet(MappingProxyType(nodes), MappingProxyType(gone), MappingProxyType(models | lost), whole=True)
        return self.fleet


def _lives(one: Sighting, edge: float) -> bool:
    return one.moved_at >= edge


def _models(sightings: Iterable[Sighting], *, gone: bool) -> dict[str, Model]:
    servings: dict[str, list[Serving]] = {}
    created: dict[str, float] = {}
    times: dict[str, list[float]] = {}
    for one in sightings:
        beat = one.beat
        for engine in beat.engines:
            servings.setdefault(engine.model, []).append(Serving(beat.node, engine, beat.draining))
            created[engine.model] = min(created.get(engine.model, beat.started_at), beat.started_at)
            if beat.pressure.service_seconds_median is not None:
                times.setdefault(engine.model, []).append(beat.pressure.service_seconds_median)
    return {
        name: Model(name, int(created[name]), tuple(each), gone, _middle(times.get(name)))
        for name, each in sorted(servings.items())
    }


def _middle(values: list[float] | None) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
