"""What a scraper reads. Base units in the names; one counter a request, one a try."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from gateway.stream import Stream

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
CACHED_S: Final = 1.0
MODELS_LIMIT: Final = 200
"""Models with a label of their own; later ones are counted together as `other`."""
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_GAPS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)


class Metrics:
    """This process's series, in a registry of their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        disable_created_metrics()
        self.registry = registry = CollectorRegistry()
        self._clock = clock
        self._text = b""
        self._text_until = float("-inf")
        self._models: set[str] = set()
        self._requests = Counter(
            "puna_gateway_requests_total",
            "Requests that were answered or given up, by the class of status the client saw; 499: it left.",
            ("op", "model", "status"),
            registry=registry,
        )
        self._attempts = Counter(
            "puna_gateway_attempts_total", "Tries of requests, the first among them.", ("op",), registry=registry
        )
        self.retries = Counter(
            "puna_gateway_retries_total", "Requests given to another worker, by why.", ("why",), registry=registry
        )
        self._lost = Counter(
            "puna_gateway_workers_lost_total", "Answers that broke off because a worker was lost.", registry=registry
        )
        self._ttft = _histogram("time_to_first_token_seconds", "From arrival to the first data.", registry)
        self._queue = _histogram("queue_seconds", "From arrival to a worker's accept.", registry)
        self._duration = _histogram("request_seconds", "From arrival to the end.", registry)
        self._gaps = _histogram("inter_chunk_seconds", "Mean gap between the chunks of a stream.", registry, _GAPS)
        self._bytes = Counter("puna_gateway_sent_bytes_total", "Bytes of answers sent.", registry=registry)
        self._frames = Counter("puna_gateway_data_frames_total", "Data frames sent to clients.", registry=registry)
        self._doubled = Counter("puna_gateway_frames_doubled_total", "Frames received twice.", registry=registry)
        self.republished = Counter(
            "puna_gateway_republished_total", "Waiting requests put into the line again.", registry=registry
        )
        self.bad_frames = Counter("puna_gateway_bad_frames_total", "Messages that were no frames.", registry=registry)
        self.unsent = Counter(
            "puna_gateway_unsent_total", "Control messages not sent for want of a session.", registry=registry
        )
        self.affinity = Counter(
            "puna_gateway_affinity_total",
            "Turns of conversations offered to the engine that holds them: offered, accepted, fell_back into the line; "
            "stale: the engine had far less in its cache than expected.",
            ("result",),
            registry=registry,
        )
        self.direct = Counter(
            "puna_gateway_direct_total",
            "Requests offered to an engine with much room: offered, accepted, fell_back into the line.",
            ("result",),
            registry=registry,
        )
        self.affinity_tokens = Counter(
            "puna_gateway_affinity_cached_tokens_total",
            "Prompt tokens of accepted offers that came out of the cache.",
            registry=registry,
        )
        self.demands = Counter(
            "puna_gateway_demands_total", "Demand signals sent, by kind: cold, spill.", ("kind",), registry=registry
        )
        self.deaths = Counter(
            "puna_gateway_engine_deaths_total", "Engines that died while they worked on a request.", registry=registry
        )
        self.refusals = Counter(
            "puna_gateway_refusals_total", "Requests refused at the door, by error code.", ("code",), registry=registry
        )

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge `puna_gateway_<name>` that is read when somebody looks."""
        Gauge(f"puna_gateway_{name}", text, registry=self.registry).set_function(read)

    def ended(self, stream: Stream) -> None:
        """Count a request that is over."""
        ticket, now = stream.ticket, self._clock()
        self._requests.labels(ticket.op, self._model(ticket.model), _class(stream.answer.status)).inc()
        self._attempts.labels(ticket.op).inc(stream.tries)
        self._duration.labels(ticket.op).observe(max(now - ticket.arrived_at, 0))
        self._bytes.inc(stream.bytes_out)
        self._frames.inc(stream.data_frames)
        self._doubled.inc(stream.duplicates)
        if stream.outcome == "lost":
            self._lost.inc()
        if stream.accepted_at is not None:
            self._queue.labels(ticket.op).observe(stream.accepted_at - ticket.arrived_at)
        if stream.first_data_at is not None:
            self._ttft.labels(ticket.op).observe(stream.first_data_at - ticket.arrived_at)
            if stream.data_frames > 1:
                self._gaps.labels(ticket.op).observe(max(now - stream.first_data_at, 0) / (stream.data_frames - 1))

    def text(self) -> bytes:
        """The scrape, made at most once a second."""
        now = self._clock()
        if now >= self._text_until:
            self._text = generate_latest(self.registry)
            self._text_until = now + CACHED_S
        return self._text

    def _model(self, model: str) -> str:
        if model not in self._models and len(self._models) >= MODELS_LIMIT:
            return "other"
        self._models.add(model)
        return model


def _class(status: int) -> str:
    return f"{status // 100}xx" if status else "499"


def _histogram(name: str, text: str, registry: CollectorRegistry, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
    return Histogram(f"puna_gateway_{name}", text, ("op",), buckets=buckets, registry=registry)
