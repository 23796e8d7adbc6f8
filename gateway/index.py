"""The models behind a set of heartbeats, kept up to date by what changed: a view costs what is new in it.

A node's heartbeat becomes its parts, one for each model that it serves or has on its disk. Only models of which a part
changed are put together anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.serving import Model, Offered, Serving
from schemas.node import Engine, Heartbeat, Offer


@dataclass(frozen=True, slots=True)
class Part:
    """What one node has for one model."""

    started_at: float
    draining: bool
    service_s: float | None
    engines: tuple[Engine, ...]
    offers: tuple[Offer, ...]


def parts_of(beat: Heartbeat) -> dict[str, Part]:
    """By model."""
    engines: dict[str, list[Engine]] = {}
    offers: dict[str, list[Offer]] = {}
    for engine in beat.engines:
        engines.setdefault(engine.model, []).append(engine)
    for offer in beat.offers:
        offers.setdefault(offer.model, []).append(offer)
    median_s = beat.pressure.service_seconds_median
    return {
        model: Part(
            beat.started_at,
            beat.draining,
            median_s if model in engines else None,
            tuple(engines.get(model, ())),
            tuple(offers.get(model, ())),
        )
        for model in engines.keys() | offers.keys()
    }


class ModelIndex:
    """Owner of the models of one set of nodes."""

    def __init__(self, *, gone: bool) -> None:
        self._gone: Final = gone
        self._beats: dict[str, Heartbeat] = {}
        self._parts: dict[str, dict[str, Part]] = {}
        self._nodes: dict[str, dict[str, Part]] = {}
        self._models: dict[str, Model] = {}

    def follow(self, beats: Mapping[str, Heartbeat]) -> Mapping[str, Model]:
        """The models behind `beats`, by name, in the order of names. What it returned before stays as it was."""
        dirty: set[str] = set()
        for node in self._beats.keys() - beats.keys():
            dirty |= self._put(node, {})
        for node, beat in beats.items():
            if self._beats.get(node) is not beat:
                dirty |= self._put(node, parts_of(beat))
        self._beats = dict(beats)
        if dirty:
            self._renew(dirty)
        return self._models

    def _put(self, node: str, parts: dict[str, Part]) -> set[str]:
        """Models whose part of this node is another one now."""
        before = self._parts.get(node, {})
        changed = {model for model in before.keys() | parts.keys() if before.get(model) != parts.get(model)}
        for model in changed:
            nodes = self._nodes.setdefault(model, {})
            if model in parts:
                nodes[node] = parts[model]
            else:
                del nodes[node]
        self._parts[node] = parts
        if not parts:
            del self._parts[node]
        return changed

    def _renew(self, dirty: set[str]) -> None:
        known = self._models.keys()
        models = dict(self._models)
        for model in dirty:
            nodes = self._nodes[model]
            if nodes:
                models[model] = _model(model, nodes, gone=self._gone)
            else:
                del self._nodes[model]
                models.pop(model, None)
        self._models = models if models.keys() == known else dict(sorted(models.items()))


def _model(name: str, nodes: Mapping[str, Part], *, gone: bool) -> Model:
    ordered = sorted(nodes.items())
    times = sorted(part.service_s for part in nodes.values() if part.service_s is not None)
    offers = [Offered(node, offer, part.draining) for node, part in ordered for offer in part.offers]
    made = Model(
        model=name,
        created=int(min(part.started_at for part in nodes.values())),
        servings=tuple(Serving(node, engine, part.draining) for node, part in ordered for engine in part.engines),
        gone=gone,
        service_s=times[len(times) // 2] if times else None,
        offers=tuple(sorted(offers, key=lambda one: one.rank)),
    )
    _ = made.state, made.takers  # counted up here, and not while a request waits for it
    return made
