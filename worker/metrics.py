"""What Prometheus reads of a worker. Base units, counters end in `_total`; labels have few values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.happenings import Happenings
from worker.inference import Inference
from worker.runtimefigures import Runtime

CACHE_S: Final = 1.0
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_WAITS: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SERVICE: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800)


class Counts(Protocol):
    """Slots, as far as metrics are concerned."""

    @property
    def models(self) -> Iterable[str]:
        """Models that have slots here."""
        ...

    def total(self, model: str) -> int:
        """Slots of the model."""
        ...

    def busy(self, model: str) -> int:
        """Those in use."""
        ...


class Present(Collector):
    """Series that are read when somebody asks for them: what is the case now."""

    def __init__(self, slots: Counts, waiting: Callable[[], int], connected: Callable[[], bool]) -> None:
        self._slots = slots
        self._waiting = waiting
        self._connected = connected

    def collect(self) -> Iterable[Metric]:
        """The series of now."""
        total = GaugeMetricFamily("puna_worker_slots", "Slots of the model's engine.", labels=["model"])
        busy = GaugeMetricFamily("puna_worker_slots_busy", "Slots in use.", labels=["model"])
        for model in self._slots.models:
            total.add_metric([model], self._slots.total(model))
            busy.add_metric([model], self._slots.busy(model))
        yield from (total, busy)
        yield GaugeMetricFamily("puna_worker_waiting", "Requests of the own HTTP that wait.", value=self._waiting())
        yield GaugeMetricFamily("puna_worker_bus_connected", "1 while NATS is there.", value=int(self._connected()))


class Metrics(Happenings):
    """All series of one worker, in a registry of their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry(auto_describe=False)
        super().__init__(self.registry)
        registry = self.registry
        self.requests = Counter(
            "puna_worker_requests_total",
            "Attempts at requests that ended.",
            ["op", "model", "outcome"],
            registry=registry,
        )
        self.decisions = Counter(
            "puna_worker_decisions_total", "What the dispatcher did.", ["origin", "decision"], registry=registry
        )
        self.waited = Histogram(
            "puna_worker_queue_seconds", "From the line to the engine.", ["model"], registry=registry, buckets=_WAITS
        )
        self.first_data = Histogram(
            "puna_worker_first_data_seconds", "From the engine's call to its first data.", ["model"],
            registry=registry, buckets=_WAITS,
        )  # fmt: skip
        self.service = Histogram(
            "puna_worker_service_seconds", "From the engine's call to its end.", ["model"],
            registry=registry, buckets=_SERVICE,
        )  # fmt: skip
        self.tokens = Counter(
            "puna_worker_tokens_total", "Tokens that engines counted.", ["model", "kind"], registry=registry
        )
        self.engine_bus_bytes = Counter(
            "puna_worker_engine_bus_bytes_total",
            "Over NATS, of requests that ended in an engine of the model: bodies and answers.",
            ["model", "way"],
            registry=registry,
        )
        self.bus_sessions = Counter(
            "puna_worker_bus_sessions_total", "Connections to NATS that were made.", registry=registry
        )
        self.heartbeats_failed = Counter(
            "puna_worker_heartbeats_failed_total", "Heartbeats that NATS did not take.", registry=registry
        )
        self.loop_lag = Gauge(
            "puna_worker_event_loop_lag_seconds", "How late the event loop was at its last tick.", registry=registry
        )
        Runtime(registry)
        self._clock = clock
        self._text = b""
        self._made_at = float("-inf")

    def add(self, present: Collector) -> None:
        """Series that are made when they are read."""
        self.registry.register(present)

    def ended(self, inference: Inference) -> None:
        """Count one attempt that ended."""
        work, summary, error = inference.work, inference.summary, inference.outcome
        model = self.model(work.model)
        self.requests.labels(work.head.op, model, error.code if error else "ok").inc()
        self.waited.labels(model).observe(max(summary.waited_s, 0.0))
        self.service.labels(model).observe(summary.total_s)
        if summary.first_data_s is not None:
            self.first_data.labels(model).observe(summary.first_data_s)
        if work.origin != "http":
            self.engine_bus_bytes.labels(model, "received").inc(len(work.body))
            self.engine_bus_bytes.labels(model, "sent").inc(inference.bytes_out)
        for kind in ("prompt", "completion"):
            count = (summary.usage or {}).get(f"{kind}_tokens")
            if isinstance(count, int) and count > 0:
                self.tokens.labels(model, kind).inc(count)

    def text(self) -> bytes:
        """What `/metrics` answers, made at most once a second."""
        now = self._clock()
        if now - self._made_at >= CACHE_S:
            self._text, self._made_at = generate_latest(self.registry), now
        return self._text
