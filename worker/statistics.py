"""The statistics of a node, put together: what is read, who is watched for taking too much, and what metrics tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bus.watched import Tasks
from schemas.node import Heartbeat
from worker.abuse import Watchman
from worker.compat import Compat
from worker.confines import Confines
from worker.engine import Engine
from worker.gauges import Sights
from worker.metrics import Metrics
from worker.settings import WorkerSettings
from worker.usage import Sources, Traffic, Usage, Watched


class Statistics:
    """`usage` has the figures of now. `engines` are those of the node by id; `on_abuse(engine, reason)` is called for
    one that takes more than it may."""

    def __init__(
        self,
        settings: WorkerSettings,
        confines: Confines,
        metrics: Metrics,
        engines: Callable[[], Mapping[str, Engine]],
        on_abuse: Callable[[str, str], None],
        traffic: Callable[[], Traffic | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._metrics = metrics
        sources = Sources(
            self._watched,
            self._places(),
            confines.figures,
            lambda engine: confines.scratch_size(engine).size_bytes,
            traffic,
        )
        self.usage = Usage(settings.statistics, sources, metrics)
        self._watchman = Watchman(sources, settings.limits_of, on_abuse, interval_s=settings.limits.scratch_check_s)

    def begin(self, tasks: Tasks, beat: Callable[[], Heartbeat]) -> None:
        """Read from now on, and tell it in `/metrics`."""
        self._metrics.add(Sights(beat, self.usage))
        if self._settings.compat_metrics:
            self._metrics.add(Compat(self._metrics, beat, self._settings.limits_of, lambda: self.usage.processes))
        tasks.start_vital("statistics", self.usage.run())
        if self._settings.limits.end_abusers:
            tasks.start_vital("watchman", self._watchman.run())

    def _watched(self) -> list[Watched]:
        here = self._engines()
        return [Watched(name, each.spec.model, pid) for name, each in here.items() if (pid := each.pid) is not None]

    def _places(self) -> dict[str, Path]:
        places = {"state": self._settings.state_folder}
        folders = dict.fromkeys(model.path.parent for model in self._settings.models)
        return places | {f"models{number or ''}": folder for number, folder in enumerate(folders)}
