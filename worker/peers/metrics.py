"""What Prometheus reads of files that go from node to node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Rejection = Literal["chunk_checksum", "file_checksum"]
"""A chunk was not what its sender said, or it was and the whole file was wrong."""
_REJECTIONS: Final[tuple[Rejection, ...]] = ("chunk_checksum", "file_checksum")


class PeerWatch:
    """Hears what happens; this one does nothing with it. All are plain calls, on the event loop."""

    def received(self, count_bytes: int) -> None:
        """Bytes of chunks came from another node."""

    def sent(self, count_bytes: int) -> None:
        """Bytes of files were handed to another node's connection."""

    def rejected(self, reason: Rejection, chunks: int = 1) -> None:
        """Chunks that came were thrown away."""

    def led(self) -> None:
        """This node began to ask the source of a file while others follow."""


class PeerMetrics(PeerWatch):
    """The counters. All series are there from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._received = Counter(
            "puna_peer_bytes_received_total", "Bytes of chunks that came from other nodes.", registry=registry
        )
        self._sent = Counter(
            "puna_peer_bytes_sent_total", "Bytes of files that other nodes were given.", registry=registry
        )
        self._rejected = Counter(
            "puna_peer_chunks_rejected_total",
            "Chunks that came and were thrown away: not what the sender said, or the whole file was wrong.",
            ["reason"],
            registry=registry,
        )
        for reason in _REJECTIONS:
            self._rejected.labels(reason)
        self._leads = Counter(
            "puna_peer_leads_total", "Times that this node asked a source for itself and others.", registry=registry
        )

    def received(self, count_bytes: int) -> None:
        self._received.inc(count_bytes)

    def sent(self, count_bytes: int) -> None:
        self._sent.inc(count_bytes)

    def rejected(self, reason: Rejection, chunks: int = 1) -> None:
        self._rejected.labels(reason).inc(chunks)

    def led(self) -> None:
        self._leads.inc()


class UploadsNow(Collector):
    """A series that is read when somebody asks for it."""

    def __init__(self, active: Callable[[], int]) -> None:
        self._active = active

    def collect(self) -> Iterable[Metric]:
        """The series of now."""
        text = "Chunks and ranges of files on their way to other nodes."
        yield GaugeMetricFamily("puna_peer_uploads_active", text, value=self._active())
