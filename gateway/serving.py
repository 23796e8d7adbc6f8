"""One model of the fleet: the engines that are there for it, what it would take to start one more, and its state.

| state         | what there is                                                                    | a request        |
|---------------|----------------------------------------------------------------------------------|------------------|
| `ready`       | an engine that takes requests                                                    | into the line    |
| `loading`     | none, and one starts, or will be tried again                                     | held             |
| `unloaded`    | none, and a node has the files: it can start one, or can once something gave way | held, and demand |
| `unavailable` | none, and nobody will have one unless somebody mends something                   | refused          |
| `gone`        | nothing any more; the nodes were there a moment ago                              | held             |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from schemas.node import Engine, Offer

ModelState = Literal["ready", "loading", "unloaded", "unavailable", "gone"]
_RANKS: Final = {"starting": 0, "stopped": 1, "crashed": 2, "stopping": 3, "ready": 4}
_REASONS_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Serving:
    """One engine of one node that is there for a model."""

    node: str
    engine: Engine
    draining: bool

    @property
    def ready(self) -> bool:
        """It takes new requests."""
        return self.engine.state == "ready" and not self.draining and not self.engine.yielding

    @property
    def on_cpu(self) -> bool:
        """It has no GPU."""
        return all(device.startswith("cpu") for device in self.engine.devices)

    @property
    def coming(self) -> bool:
        """It is on its way."""
        return self.engine.state == "starting" and not self.draining

    @property
    def going(self) -> bool:
        """It is about to make room for another model."""
        return self.engine.state == "stopping" or self.engine.yielding

    @property
    def hopeless(self) -> bool:
        """It will not come up by itself soon: it is not tried again, may not be started as things are, or has failed
        so often that nobody waits for it."""
        engine = self.engine
        return engine.state == "crashed" and (engine.unfit or engine.breaker_open or engine.next_retry_at is None)


@dataclass(frozen=True, slots=True)
class Offered:
    """What one node says of starting an engine."""

    node: str
    offer: Offer
    draining: bool

    @property
    def rank(self) -> tuple[bool, bool, int]:
        """The lower, the sooner."""
        cost = self.offer.cost
        return (self.draining, cost is None, cost or 0)


@dataclass(frozen=True, slots=True)
class Loading:
    """What a held request waits for."""

    state: str
    reason: str
    progress: float | None = None
    """0 to 1."""
    eta_s: float | None = None
    """By how long it took the last time."""

    def told(self) -> Mapping[str, str | float | None]:
        """As clients read it beside an error."""
        return {"state": self.state, "reason": self.reason, "progress": self.progress, "eta_s": self.eta_s}

    @property
    def text(self) -> str:
        """In words."""
        done = "" if self.progress is None else f", {self.progress:.0%} done"
        left = "" if self.eta_s is None else f", about {max(self.eta_s, 1):.0f} s to go"
        return f"{self.reason}{done}{left}"


@dataclass(frozen=True)
class Model:
    """A model and all that stands behind it on live nodes, or, if `gone`, what stood there last."""

    model: str
    created: int
    servings: tuple[Serving, ...]
    gone: bool = False
    service_s: float | None = None
    """Median time of a request, as the nodes measured it."""
    offers: tuple[Offered, ...] = field(default=())
    """Nodes that have its files, the cheapest first."""

    @cached_property
    def slots_total(self) -> int:
        """Slots of engines that are ready."""
        return 0 if self.gone else sum(one.engine.slots_total for one in self.servings if one.ready)

    @cached_property
    def slots_busy(self) -> int:
        """Of those, how many were busy at the last heartbeat."""
        return 0 if self.gone else sum(one.engine.slots_busy for one in self.servings if one.ready)

    @cached_property
    def slots_coming(self) -> int:
        """Slots of engines that are starting; one that does not tell its slots yet has at least one."""
        return 0 if self.gone else sum(max(one.engine.slots_total, 1) for one in self.servings if one.coming)

    @cached_property
    def takers(self) -> tuple[Serving, ...]:
        """Engines that take requests now; where some of them are on GPUs, only those."""
        ready = tuple(one for one in self.servings if one.ready and not self.gone)
        return tuple(one for one in ready if not one.on_cpu) or ready

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Those that serve it, or have its files; sorted."""
        return tuple(sorted({one.node for one in (*self.servings, *self.offers)}))

    @cached_property
    def state(self) -> ModelState:
        """See the table above."""
        if self.gone:
            return "gone"
        if any(one.ready for one in self.servings):
            return "ready"
        possible = any(not one.offer.never for one in self.offers)
        if any(not one.hopeless and not (possible and one.going) for one in self.servings):
            return "loading"
        return "unloaded" if possible else "unavailable"

    @property
    def reason(self) -> str | None:
        """Why it is not ready, in words."""
        return None if self.loading is None else self.loading.reason

    @cached_property
    def loading(self) -> Loading | None:
        """What a request for it would wait for; nothing if it is ready."""
        if self.state == "ready":
            return None
        if self.gone:
            return Loading("gone", "the node that served it has gone")
        if self.state == "unloaded" or not self.servings:
            return self._unloaded()
        return self._nearest()

    def _nearest(self) -> Loading:
        """In the words of the engine that is nearest to being ready."""
        one = min(self.servings, key=lambda one: (one.draining, one.hopeless, _RANKS[one.engine.state]))
        engine = one.engine
        if one.draining:
            return Loading(self.state, f"node {one.node} is draining")
        told = f": {engine.reason}" if engine.reason else ""
        reason = f"engine {'not started' if engine.unfit else engine.state} on {one.node}{told}"
        if engine.state != "starting":
            return Loading(self.state, reason)
        left = None if engine.load_seconds is None else engine.load_seconds * (1 - (engine.progress or 0.0))
        return Loading(self.state, reason, engine.progress, left)

    def _unloaded(self) -> Loading:
        if not self.offers:
            return Loading(self.state, "no engine serves it")
        best = min(self.offers, key=lambda one: one.rank)
        if best.draining:
            return Loading(self.state, f"node {best.node} is draining")
        if best.offer.cost is not None:
            return Loading(self.state, f"not loaded; {best.node} can start it", None, best.offer.load_seconds)
        said = [f"{one.node}: {one.offer.reason or 'it cannot start it now'}" for one in self.offers[:_REASONS_SHOWN]]
        more = len(self.offers) - len(said)
        return Loading(self.state, "; ".join(said) + (f"; and {more} more nodes" if more > 0 else ""))
