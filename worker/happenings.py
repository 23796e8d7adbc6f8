"""Counters of what happens to engines, orders and readings. Whoever sees it happen counts it here.

Labels have few values: models beyond `MODELS_LIMIT` share the name `other`, reasons and verbs are from short lists.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from schemas.errors import PunaError

MODELS_LIMIT: Final = 256
OTHER: Final = "other"
_LOADS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
_ORDERS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600)


class Modelled(Protocol):
    """What an engine was asked to be."""

    @property
    def model(self) -> str:
        """Which model it serves."""
        ...


class Changed(Protocol):
    """An engine, as far as counters are concerned."""

    engine_id: str

    @property
    def spec(self) -> Modelled:
        """What it was asked to be."""
        ...

    @property
    def state(self) -> str:
        """Where it is."""
        ...

    @property
    def reason_code(self) -> str | None:
        """Why."""
        ...

    @property
    def adopted(self) -> bool:
        """Taken over as it ran."""
        ...

    @property
    def breaker_open(self) -> bool:
        """Given up for a while."""
        ...

    @property
    def load_seconds(self) -> float | None:
        """How long its last load took."""
        ...


class Happenings:
    """The counters. Take a label for a model from `model()`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models: set[str] = set()
        self._states: dict[str, str] = {}
        self._open: set[str] = set()
        self._engines(registry)
        self._placement(registry)
        self._orders(registry)
        self._readings(registry)

    def model(self, name: str) -> str:
        """The label of a model: its name, while there are not too many of them."""
        if name in self._models or len(self._models) < MODELS_LIMIT:
            self._models.add(name)
            return name
        return OTHER

    # -- what happens to engines -------------------------------------------------------------------------------------
    def _engines(self, registry: CollectorRegistry) -> None:
        self.engine_moves = Counter(
            "puna_worker_engine_moves_total", "States that engines entered.", ["model", "state"], registry=registry
        )
        self.loads = Counter(
            "puna_worker_loads_total", "Loads that ended: ready, crashed, stopped.", ["model", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.load_seconds = Histogram(
            "puna_worker_load_seconds", "From an engine's start to ready.", ["model"],
            registry=registry, buckets=_LOADS,
        )  # fmt: skip
        self.engine_ends = Counter(
            "puna_worker_engine_ends_total",
            "Engines that stopped or crashed, by the code of their reason.",
            ["model", "reason"],
            registry=registry,
        )
        self.breakers = Counter(
            "puna_worker_breakers_opened_total", "Engines given up for a while, as starts failed in a row.",
            ["model"], registry=registry,
        )  # fmt: skip
        self.adoptions = Counter(
            "puna_worker_adoptions_total", "Engines of an earlier life that were taken over as they ran.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.abuses = Counter(
            "puna_worker_abuses_total", "Engines that took more than they may.", ["model"], registry=registry
        )
        self.engine_failures = Counter(
            "puna_worker_engine_failures_total", "Engines that ended by themselves.", ["model"], registry=registry
        )

    def engine_changed(self, engine: Changed) -> None:
        """An engine may be in another state than when it was last told of. Safe to call too often."""
        model, state = self.model(engine.spec.model), engine.state
        was = self._states.get(engine.engine_id, "stopped")
        if engine.breaker_open and engine.engine_id not in self._open:
            self.breakers.labels(model).inc()
        (self._open.add if engine.breaker_open else self._open.discard)(engine.engine_id)
        if state == was:
            return
        self._states[engine.engine_id] = state
        self.engine_moves.labels(model, state).inc()
        if state == "ready":
            self._got_ready(model, engine)
        elif was == "starting":
            self.loads.labels(model, "crashed" if state == "crashed" else "stopped").inc()
        if state in ("stopped", "crashed"):
            self._ended(model, engine)

    def _got_ready(self, model: str, engine: Changed) -> None:
        if engine.adopted:
            self.adoptions.labels(model).inc()
            return
        self.loads.labels(model, "ready").inc()
        if engine.load_seconds is not None:
            self.load_seconds.labels(model).observe(engine.load_seconds)

    def _ended(self, model: str, engine: Changed) -> None:
        self.engine_ends.labels(model, engine.reason_code or "none").inc()
        if engine.state == "crashed":
            self.engine_failures.labels(model).inc()
        elif engine.reason_code == "evicted":
            self.evictions.labels(model).inc()

    # -- what is decided ---------------------------------------------------------------------------------------------
    def _placement(self, registry: CollectorRegistry) -> None:
        self.evictions = Counter(
            "puna_worker_evictions_total", "Engines stopped to make room.", ["model"], registry=registry
        )
        self.switches = Counter(
            "puna_worker_switches_total", "Starts for which another model had to go.", ["model"], registry=registry
        )
        self.yields = Counter(
            "puna_worker_yields_total", "Engines that took nothing new, as another model waited.", ["model"],
            registry=registry,
        )  # fmt: skip
        self.lease_denials = Counter(
            "puna_worker_lease_denials_total", "Starts left to another node that had the lease.", ["model"],
            registry=registry,
        )  # fmt: skip

    def lease_denied(self, model: str) -> None:
        """A start was left to another node."""
        self.lease_denials.labels(self.model(model)).inc()

    def told(self, kind: str, facts: Mapping[str, Any]) -> None:
        """An event was told."""
        if kind == "model_switched":
            self.switches.labels(self.model(str(facts.get("model")))).inc()
        elif kind == "engine_yields":
            self.yields.labels(self.model(str(facts.get("model")))).inc()

    # -- what operators ask ------------------------------------------------------------------------------------------
    def _orders(self, registry: CollectorRegistry) -> None:
        self.orders = Counter(
            "puna_worker_control_requests_total", "Control verbs answered.", ["verb"], registry=registry
        )
        self.order_failures = Counter(
            "puna_worker_control_failures_total", "Control verbs refused or failed.", ["verb", "code"],
            registry=registry,
        )  # fmt: skip
        self.order_seconds = Histogram(
            "puna_worker_control_seconds", "Time to answer a control verb.", ["verb"],
            registry=registry, buckets=_ORDERS,
        )  # fmt: skip

    def ordered(self, verb: str, seconds: float, error: Exception | None = None) -> None:
        """A control verb of ours was answered."""
        self.orders.labels(verb).inc()
        self.order_seconds.labels(verb).observe(seconds)
        if error is not None:
            self.order_failures.labels(verb, cause_of(error)).inc()

    # -- what is looked at regularly ---------------------------------------------------------------------------------
    def _readings(self, registry: CollectorRegistry) -> None:
        self.heartbeat_at = Gauge(
            "puna_worker_heartbeat_timestamp_seconds", "When the last heartbeat was made.", registry=registry
        )
        self.syncs = Counter(
            "puna_worker_engine_syncs_total", "Looks at whether engines and processes agree.", registry=registry
        )
        self.synced = Counter(
            "puna_worker_engines_synced_total", "Engines that such looks found in order.", registry=registry
        )
        self.sync_failures = Counter(
            "puna_worker_engine_sync_failures_total", "Looks that failed.", ["code"], registry=registry
        )
        self.mended = Counter(
            "puna_worker_engines_mended_total", "Engines, notes and processes that did not agree.", ["what"],
            registry=registry,
        )  # fmt: skip
        self.readings = Counter(
            "puna_worker_statistics_begun_total", "Readings of figures.", ["scope"], registry=registry
        )
        self.readings_done = Counter(
            "puna_worker_statistics_done_total", "Readings that went well.", ["scope"], registry=registry
        )
        self.reading_failures = Counter(
            "puna_worker_statistics_failures_total", "Readings that failed.", ["scope", "code"], registry=registry
        )

    def heartbeat_made(self) -> None:
        """A heartbeat is about to be sent."""
        self.heartbeat_at.set(time.time())

    def sync_begun(self) -> None:
        """Somebody looks whether the engines' processes are what they are taken for."""
        self.syncs.inc()

    def sync_done(self, engines: int) -> None:
        """So many are."""
        self.synced.inc(engines)

    def sync_failed(self, error: Exception) -> None:
        """It could not be told."""
        self.sync_failures.labels(cause_of(error)).inc()

    def sync_mended(self, what: str, count: int) -> None:
        """So many did not agree: dead, gone or unknown ones."""
        self.mended.labels(what).inc(count)

    def statistics_begun(self, scope: str) -> None:
        """A reading begins."""
        self.readings.labels(scope).inc()

    def statistics_done(self, scope: str) -> None:
        """It went well."""
        self.readings_done.labels(scope).inc()

    def statistics_failed(self, scope: str, error: Exception) -> None:
        """It did not."""
        self.reading_failures.labels(scope, cause_of(error)).inc()


def cause_of(error: Exception) -> str:
    """A label for an error: its code if it is ours, else its type."""
    return error.code if isinstance(error, PunaError) else type(error).__name__
