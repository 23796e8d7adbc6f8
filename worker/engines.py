"""What the serving of requests needs of the engines of its node: whom there is, what a start would take, and a wish."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from schemas.node import Engine as Snapshot
from schemas.node import EngineState
from web.client import Client
from worker.enginespec import EngineSpec
from worker.plans import Plan


class ServingEngine(Protocol):
    """One engine."""

    engine_id: str
    spec: EngineSpec

    @property
    def client(self) -> Client | None:
        """The way to it while it is ready."""
        ...

    @property
    def state(self) -> EngineState:
        """Where it is."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it is there."""
        ...

    def snapshot(self, slots_busy: int = 0) -> Snapshot:
        """All that is known of it."""
        ...


class Engines(Protocol):
    """The keeper of the engines, as far as requests are concerned."""

    @property
    def engines(self) -> Mapping[str, ServingEngine]:
        """All engines of this node by id: a live view."""
        ...

    @property
    def models(self) -> Collection[str]:
        """Models that this node can serve, with an engine or not: a live view."""
        ...

    def serves(self, model: str) -> bool:
        """Whether the model is one of `models`."""
        ...

    def of(self, model: str) -> Sequence[ServingEngine]:
        """The engines of a model."""
        ...

    def plan(self, model: str, waited_s: float = 0.0) -> Plan:
        """What it would take to start one more engine of the model, decided now."""
        ...

    def want(self, model: str, why: str, *, devices: Sequence[str] = (), waited_s: float = 0.0) -> None:
        """A request has waited so long for an engine of the model: start one as soon as a plan allows."""
        ...

    def starting(self, model: str) -> bool:
        """Whether an engine of the model is on its way."""
        ...

    def used(self, model: str) -> None:
        """A request of the model begins."""
        ...
