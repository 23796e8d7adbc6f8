"""What is counted of engines, their output and the looks at them; and that a new engine is no news of an end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from worker import lifecycle
from worker.enginelog import EngineLog
from worker.enginespec import EngineSpec
from worker.events import Events
from worker.gauges import Logs
from worker.lifecycle import Lifecycle
from worker.metrics import Metrics


@dataclass
class Machine:
    """An engine, as far as counters and events are concerned."""

    engine_id: str = "engine-0"
    state: Any = "stopped"
    reason_code: Any = None
    reason: str | None = None
    adopted: bool = False
    breaker_open: bool = False
    step: str | None = None
    load_seconds: float | None = 1.5
    spec: EngineSpec = field(default_factory=lambda: EngineSpec("m", Path("m.gguf")))
    log: EngineLog = field(default_factory=EngineLog)
    remains: Any = None


class Bus:
    """Takes what is published."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.names = self

    def event(self, node: str, kind: str) -> str:
        return f"puna.event.{node}.{kind}"

    def publish(self, subject: str, payload: bytes) -> None:
        self.kinds.append(json.loads(payload)["kind"])


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def series(metrics: Metrics, name: str) -> dict[str, float]:
    """The samples of a series by their labels as they are written."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    rows = [line.rpartition(" ") for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return {labels.removeprefix(name): float(value) for labels, _, value in rows}


def test_an_engine_that_was_just_made_has_not_ended(metrics: Metrics) -> None:
    bus, engine = Bus(), Machine()
    events = Events(bus, "n1")  # type: ignore[arg-type]
    for state in ("stopped", "starting", "ready", "stopping", "stopped"):
        engine.state = state
        events.engine(engine)  # type: ignore[arg-type]
        metrics.engine_changed(engine)
    again = Machine()
    events.engine(again)  # type: ignore[arg-type]
    metrics.engine_changed(again)
    assert bus.kinds == ["engine_starting", "engine_ready", "engine_stopping", "engine_stopped"]
    assert series(metrics, "puna_worker_engine_ends_total") == {'{model="m",reason="none"}': 1}
    assert series(metrics, "puna_worker_engine_moves_total")['{model="m",state="stopped"}'] == 1


def test_each_step_of_each_start_is_told_once() -> None:
    bus, engine = Bus(), Machine(state="starting")
    events = Events(bus, "n1")  # type: ignore[arg-type]
    for step in (None, "checked", "checked", "port_leased", None, "checked"):
        engine.step = step
        events.engine(engine)  # type: ignore[arg-type]
    assert bus.kinds == ["engine_starting", "engine_step", "engine_step", "engine_step"]


def test_yields_switches_and_starts_left_to_others_are_counted(metrics: Metrics) -> None:
    events = Events(Bus(), "n1", metrics.told)  # type: ignore[arg-type]
    events.tell("engine_yields", engine="engine-0", model="m")
    events.tell("model_switched", model="m")
    metrics.lease_denied("m")
    for name in ("yields", "switches", "lease_denials"):
        assert series(metrics, f"puna_worker_{name}_total") == {'{model="m"}': 1}


def test_output_that_was_lost_or_withheld_is_counted(metrics: Metrics) -> None:
    engine = Machine()
    metrics.add(Logs(lambda: [engine]))
    engine.log.lost(700)
    engine.log.requests_begin()
    engine.log.feed(1, b"a line that could hold what a client sent\n")
    labels = '{engine="engine-0",model="m"}'
    assert series(metrics, "puna_worker_engine_log_lost_bytes_total") == {labels: 700}
    assert series(metrics, "puna_worker_engine_log_withheld_lines_total") == {labels: 1}


async def test_looks_at_processes_are_counted_with_what_they_find(metrics: Metrics, tmp_path: Path) -> None:
    look = Lifecycle(tmp_path, lambda: [Machine()], metrics)
    await look.look()
    await look.look()
    assert series(metrics, "puna_worker_engine_syncs_total") == {"": 2}
    assert series(metrics, "puna_worker_engines_mended_total") == {}
    (tmp_path / "engines").mkdir(exist_ok=True)
    metrics.sync_mended("gone", 3)
    assert series(metrics, "puna_worker_engines_mended_total") == {'{what="gone"}': 3}


async def test_a_look_that_fails_is_counted_and_looked_again(
    metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def engines() -> list[Machine]:
        if not calls:
            calls.append("failed")
            raise OSError("no process table")
        raise Again

    calls: list[str] = []
    monkeypatch.setattr(lifecycle, "INTERVAL_S", 0.001)
    with pytest.raises(Again):
        await Lifecycle(tmp_path, engines, metrics).run()
    assert series(metrics, "puna_worker_engine_sync_failures_total") == {'{code="OSError"}': 1}


class Again(Exception):
    """It was looked at once more."""
