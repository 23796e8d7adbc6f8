"""Where engines run: processes of this host, or, in tests and benches, something that behaves like them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from worker.accelerators import Accelerator, AcceleratorSettings, discover
from worker.enginelog import EngineLog
from worker.launch import Command
from worker.process import MinderTerms, launch
from worker.remains import Remains


class Running(Protocol):
    """A process of an engine that was started. `exited` resolves with its exit code (negative: a signal)."""

    exited: asyncio.Future[int]
    output_ended: asyncio.Event
    remains: Remains
    minder_pid: int
    minder_lost: bool
    socket_path: Path

    @property
    def pid(self) -> int:
        """The engine's."""
        ...

    def mark_requests(self) -> None:
        """From here on its output may quote requests."""
        ...

    def leave(self) -> None:
        """Let go of it, for the next worker."""
        ...

    async def end(self, grace_s: float) -> int:
        """SIGTERM, SIGKILL after `grace_s`, and wait until all of it is gone."""
        ...


class Launch(Protocol):
    """Starts engines."""

    async def __call__(self, what: Command, log: EngineLog, terms: MinderTerms | None = None) -> Running:
        """Start one. Raises `OSError` if it cannot be started."""
        ...


class Backend(Protocol):
    """The devices of a node, and the way to start an engine on them."""

    def discover(self, engine: Sequence[str], choice: AcceleratorSettings) -> Sequence[Accelerator]:
        """The kinds of devices. In a thread: it may take seconds."""
        ...

    @property
    def launch(self) -> Launch:
        """Starts engines."""
        ...


class Processes:
    """The default: this host's devices, and processes under minders."""

    launch = staticmethod(launch)

    def discover(self, engine: Sequence[str], choice: AcceleratorSettings) -> Sequence[Accelerator]:
        """What drivers and the engine's own list tell."""
        return discover(engine, choice)
