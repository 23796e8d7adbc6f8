"""Which nodes may be asked to load a model, the best one first; and who has engines of it. Plain functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from schemas.errors import ModelNotFound, NotFound, PunaError, Unavailable
from schemas.node import Heartbeat, Offer

SOURCE_LABEL: Final = "source"
HTTP_SOURCE: Final = "http"
"""Value of the label of nodes that report by HTTP: they are listed, and cannot be asked for anything."""
RETRY_AFTER_S: Final = 10.0
_NOT_NOW: Final = 100
_RUNNING: Final = frozenset(("starting", "ready"))


@dataclass(frozen=True, slots=True)
class Held:
    """One engine of one node."""

    node: str
    engine: str
    model: str
    state: str


def asked_by_bus(beat: Heartbeat) -> bool:
    """Whether the node has a worker that listens."""
    return beat.labels.get(SOURCE_LABEL) != HTTP_SOURCE


def offer_of(beat: Heartbeat, model: str) -> Offer | None:
    """What the node offers for the model."""
    return next((offer for offer in beat.offers if offer.model == model), None)


def holders(beats: Iterable[Heartbeat], *, model: str | None = None, engine: str | None = None) -> list[Held]:
    """Engines of the model, or with the id, on all nodes."""
    return [
        Held(beat.node, one.engine, one.model, one.state)
        for beat in beats
        for one in beat.engines
        if (model is None or one.model == model) and (engine is None or one.engine == engine)
    ]


def running(beats: Iterable[Heartbeat], model: str) -> list[Held]:
    """Those of the model that are ready or on their way."""
    return [held for held in holders(beats, model=model) if held.state in _RUNNING]


def candidates(beats: Iterable[Heartbeat], model: str, node: str | None = None) -> list[str]:
    """Nodes to ask to load `model`: the cheapest offer first, then the one with most room; last those that said they
    cannot now, for that may have changed since, and they answer for themselves.

    With `node`, that one alone, whatever it offers. Raises `NotFound` for a node that is not there, `ModelNotFound` if
    nobody has the model, `Unavailable`, with each node's reason, if nobody that has it can be asked.
    """
    live = [beat for beat in beats if asked_by_bus(beat)]
    if node is not None:
        if all(beat.node != node for beat in live):
            raise NotFound(f"node {node[:80]!r} is not there; GET /v1/nodes lists those that are", param="node")
        return [node]
    offers = [(beat, offer) for beat in live if (offer := offer_of(beat, model)) is not None]
    ranked = [
        (_NOT_NOW if offer.cost is None else offer.cost, -(offer.free_bytes or 0), beat.node)
        for beat, offer in offers
        if not beat.draining
    ]
    if not ranked:
        raise _nobody(live, offers, model)
    return [name for _, _, name in sorted(ranked)]


def _nobody(live: list[Heartbeat], offers: list[tuple[Heartbeat, Offer]], model: str) -> PunaError:
    if not offers and not holders(live, model=model):
        return ModelNotFound(f"no node has model {model[:200]!r}", param="model")
    reasons = [
        f"{beat.node}: {'it is draining' if beat.draining else offer.reason or 'not now'}" for beat, offer in offers
    ]
    told = "; ".join(reasons) or "no node offers to start one more engine of it"
    return Unavailable(f"model {model!r} cannot be loaded now: {told}", retry_after_s=RETRY_AFTER_S)
