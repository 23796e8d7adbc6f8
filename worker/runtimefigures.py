"""What Prometheus reads of this process: tasks, threads, pauses for garbage, and what the system counts."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PAUSES: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1)


class Runtime(Collector):
    """Registers itself, and `process_*`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pauses = Histogram(
            "python_gc_pause_seconds", "Collections of garbage: nothing else runs meanwhile.", ["generation"],
            registry=registry, buckets=_PAUSES,
        )  # fmt: skip
        ProcessCollector(registry=registry)
        registry.register(self)
        _watch(self)

    def collect(self) -> Iterable[Metric]:
        """The series of now."""
        try:
            tasks = len(asyncio.all_tasks())
        except RuntimeError:  # read from outside the event loop
            tasks = 0
        yield GaugeMetricFamily("python_asyncio_tasks_current", "Tasks of the event loop.", value=tasks)
        yield GaugeMetricFamily("python_threads_current", "Threads.", value=threading.active_count())

    def paused(self, generation: int, seconds: float) -> None:
        """Garbage was collected."""
        self._pauses.labels(str(generation)).observe(seconds)


_watching: Final = weakref.WeakSet[Runtime]()
_begun_at = 0.0


def _watch(runtime: Runtime) -> None:
    if _collected not in gc.callbacks:
        gc.callbacks.append(_collected)
    _watching.add(runtime)


def _collected(phase: str, info: dict[str, int]) -> None:
    global _begun_at
    if phase == "start":
        _begun_at = time.perf_counter()
        return
    seconds = time.perf_counter() - _begun_at
    for each in tuple(_watching):
        each.paused(info["generation"], seconds)
