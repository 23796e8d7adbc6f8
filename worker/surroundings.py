"""What the parts of a node share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bus.connection import Bus
from bus.watched import Tasks
from worker.backend import Launch
from worker.confines import Confines
from worker.devices import Devices
from worker.enginespec import EngineBinary
from worker.events import Events
from worker.metrics import Metrics
from worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Surroundings:
    """One node's. `binary` is None on a node without an engine program; `launch` starts engines' processes."""

    settings: WorkerSettings
    bus: Bus
    events: Events
    devices: Devices
    confines: Confines
    binary: EngineBinary | None
    launch: Launch
    metrics: Metrics
    tasks: Tasks
    clock: Callable[[], float]


def puna_version() -> str:
    """Of the installed package; of a bare checkout a version that sorts before all."""
    try:
        return version("puna")
    except PackageNotFoundError:
        return "0.0.0+checkout"
