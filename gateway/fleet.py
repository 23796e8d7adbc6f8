"""The fleet as this gateway sees it: an immutable view, swapped whole.

A node lives while its heartbeat's sequence moves, judged by our own clock: no remote time is ever compared. While the
bus is away no node can be heard, so none grows older; after a new session each has the whole time again, also if the
bucket came back empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from pydantic import ValidationError

from gateway.index import ModelIndex
from gateway.serving import Loading, Model, ModelState, Offered, Serving
from schemas.node import Heartbeat
from schemas.topology import NODE_TTL_S

__all__ = ["Fleet", "Loading", "Model", "ModelState", "Offered", "Roster", "Serving", "Sighting", "Value"]

GONE_KEPT_S: Final = 60.0
"""For how long a node that went away, and what it served, is remembered."""
NODES_LIMIT: Final = 10_000
"""Heartbeats that one view holds."""


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
        self._live = ModelIndex(gone=False)
        self._lost = ModelIndex(gone=True)
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
        models = self._live.follow({name: one.beat for name, one in nodes.items()})
        lost = self._lost.follow({name: one.beat for name, one in gone.items()})
        if lost:
            models = {**models, **{name: model for name, model in lost.items() if name not in models}}
        self.fleet = Fleet(MappingProxyType(nodes), MappingProxyType(gone), MappingProxyType(models), whole=True)
        return self.fleet


def _lives(one: Sighting, edge: float) -> bool:
    return one.moved_at >= edge
