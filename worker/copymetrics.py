"""What Prometheus reads of models' files: under the names that dashboards of the OME model agent know
(`model_agent_*`), and under our own with what those leave out.

A fleet has no namespaces and no two kinds of model, so `namespace` is the fleet's prefix and `model_type` always the
same. What is counted here is counted once under each name.
"""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.model import COPY_MOVES, CopyRecord
from worker.copyjob import Watch
from worker.sources import SourceError
from worker.store.budget import Room

MODEL_TYPE: Final = "ClusterBaseModel"
"""The reference's word for a model that is everybody's."""
_OF: Final = ("model_type", "namespace", "name")
_DOWNLOADS: Final = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800)
_VERIFICATIONS: Final = (0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600, 1800)
_WAITS: Final = (1, 2, 5, 10, 30, 60, 120, 300)
_CALLS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)


class CopyMetrics(Watch):
    """The counters. `label` gives a model's label: there are not too many of them."""

    def __init__(self, registry: CollectorRegistry, namespace: str, label: Callable[[str], str]) -> None:
        self._namespace = namespace
        self._label = label
        self._references_downloads(registry)
        self._references_checks(registry)
        self._own(registry)

    def _references_downloads(self, registry: CollectorRegistry) -> None:
        self._success = Counter(
            "model_agent_downloads_success_total", "Models whose files came.", _OF, registry=registry
        )
        self._failed = Counter(
            "model_agent_downloads_failed_total", "Models whose files did not come.", _OF, registry=registry
        )
        self._skipped = Counter(
            "model_agent_downloads_skipped_total", "Models that were not fetched.", ["reason"], registry=registry
        )
        self._duration = Histogram(
            "model_agent_download_duration_seconds", "From a model's turn until it could be served.", _OF,
            registry=registry, buckets=_DOWNLOADS,
        )  # fmt: skip
        self._bytes = Counter("model_agent_download_bytes_total", "Bytes of files that came.", _OF, registry=registry)

    def _references_checks(self, registry: CollectorRegistry) -> None:
        self._verifications = Counter(
            "model_agent_verifications_total", "Checks of files: as they came, and read again.", ["result"],
            registry=registry,
        )  # fmt: skip
        self._verification_seconds = Histogram(
            "model_agent_verification_duration_seconds", "Reading a model's files again.",
            registry=registry, buckets=_VERIFICATIONS,
        )  # fmt: skip
        self._md5 = Counter(
            "model_agent_md5_checksum_failed_total", "Files that came with another MD5 than was told.",
            registry=registry,
        )  # fmt: skip
        self._limited = Counter(
            "model_agent_rate_limit_total", "Times that a source asked for quiet.", registry=registry
        )
        self._limited_seconds = Histogram(
            "model_agent_rate_limit_wait_seconds", "For how long.", registry=registry, buckets=_WAITS
        )
        self._configmaps = Counter(
            "model_agent_configmap_operations_total", "Calls to the copies bucket.", ["operation", "result"],
            registry=registry,
        )  # fmt: skip

    def _own(self, registry: CollectorRegistry) -> None:
        self._downloads = Counter(
            "puna_worker_downloads_total", "Downloads that ended: `ok`, or the error's code.", ["model", "outcome"],
            registry=registry,
        )  # fmt: skip
        self._download_bytes = Counter(
            "puna_worker_download_bytes_total", "Bytes of files that came.", registry=registry
        )
        self._file_checks = Counter(
            "puna_worker_file_checks_total", "Files held against their checksum as they came.", ["algorithm", "result"],
            registry=registry,
        )  # fmt: skip
        self._copy_checks = Counter(
            "puna_worker_copy_verifications_total", "Models whose files were read again.", ["result"], registry=registry
        )
        self._calls = Counter(
            "puna_worker_kv_operations_total", "Calls to the copies bucket: `success`, or the error's code.",
            ["operation", "result"], registry=registry,
        )  # fmt: skip
        self._call_seconds = Histogram(
            "puna_worker_kv_operation_seconds", "How long they took.", ["operation"],
            registry=registry, buckets=_CALLS,
        )  # fmt: skip

    def _of(self, model: str) -> tuple[str, str, str]:
        return MODEL_TYPE, self._namespace, self._label(model)

    # -- copies ------------------------------------------------------------------------------------------------------
    def fetched(self, model: str, seconds: float) -> None:
        self._success.labels(*self._of(model)).inc()
        self._duration.labels(*self._of(model)).observe(seconds)
        self._downloads.labels(self._label(model), "ok").inc()

    def failed(self, model: str, error: SourceError) -> None:
        self._failed.labels(*self._of(model)).inc()
        self._downloads.labels(self._label(model), error.code).inc()

    def skipped(self, model: str, reason: str) -> None:
        self._skipped.labels(reason).inc()
        self._downloads.labels(self._label(model), reason).inc()

    def came(self, model: str, count_bytes: int) -> None:
        if count_bytes > 0:
            self._bytes.labels(*self._of(model)).inc(count_bytes)
            self._download_bytes.inc(count_bytes)

    def checked(self, *, good: bool, algorithm: str = "sha256") -> None:
        self._verifications.labels(_result(good)).inc()
        self._file_checks.labels(algorithm, _result(good)).inc()
        if not good and algorithm == "md5":
            self._md5.inc()

    def verified(self, *, good: bool, seconds: float) -> None:
        self._verifications.labels(_result(good)).inc()
        self._verification_seconds.observe(seconds)
        self._copy_checks.labels(_result(good)).inc()

    # -- others ------------------------------------------------------------------------------------------------------
    def throttled(self, _origin: str, seconds: float) -> None:
        """A source asked to be left alone for so long."""
        self._limited.inc()
        self._limited_seconds.observe(seconds)

    def asked(self, operation: str, result: str, seconds: float) -> None:
        """The copies bucket was asked for something."""
        told = "update" if operation == "put" else operation
        self._configmaps.labels(told, "success" if result == "success" else "failure").inc()
        self._calls.labels(operation, result).inc()
        self._call_seconds.labels(operation).observe(seconds)


def _result(good: bool) -> str:
    return "success" if good else "failure"


class Here(Protocol):
    """What is the case now."""

    @property
    def active(self) -> int:
        """Models that are being fetched."""
        ...

    @property
    def queued(self) -> int:
        """Models and tasks that wait for their turn."""
        ...

    @property
    def records(self) -> Iterable[CopyRecord]:
        """Of all copies."""
        ...

    @property
    def room(self) -> Room | None:
        """Of the models' folder, as it was last looked at."""
        ...


class CopiesNow(Collector):
    """Series that are read when somebody asks for them."""

    def __init__(self, here: Here) -> None:
        self._here = here

    def collect(self) -> Iterable[Metric]:
        """The series of now."""
        here = self._here
        yield GaugeMetricFamily("model_agent_active_workers", "Models that are being fetched.", value=here.active)
        yield GaugeMetricFamily("model_agent_task_queue_depth", "What waits for its turn.", value=here.queued)
        states = Count(record.state for record in here.records)
        copies = GaugeMetricFamily("puna_worker_copies", "Models on this node's disks, by state.", labels=["state"])
        for state in COPY_MOVES:
            copies.add_metric([state], states[state])
        yield copies
        if (room := here.room) is not None:
            space = GaugeMetricFamily("puna_worker_store_bytes", "The models' folder.", labels=["kind"])
            for kind in ("held", "free", "total", "promised"):
                space.add_metric([kind], getattr(room, f"{kind}_bytes"))
            yield space
