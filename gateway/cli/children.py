"""The processes of `puna up`: started, watched, started again when they die, and gone when it is.

One task watches each child. What happened is told to `on_change`; nothing else reads or writes a child's state.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.cli.exits import CliError
from gateway.cli.ports import is_free
from gateway.cli.tether import tethered

RESTART_S: Final = 1.0
RESTART_LIMIT_S: Final = 30.0
SETTLED_S: Final = 10.0
"""A child that lived this long before it died is started again without growing delay."""
STOP_S: Final = 8.0
_LOG_TAIL_LINES: Final = 12


@dataclass
class Child:
    """One process of the fleet. `pid` is None while it is down."""

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    port: int | None = None
    """A port that it must have: it is not started again while another program listens there."""
    pid: int | None = None
    ended: str | None = None
    """How it last ended, in words; None while it runs for the first time."""
    quick_deaths: int = 0
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            return "\n".join(f"  {line}" for line in lines[-_LOG_TAIL_LINES:])
        return ""


def restart_delay_s(quick_deaths: int) -> float:
    """How long to wait before a child that died is started again."""
    return min(RESTART_LIMIT_S, RESTART_S * 2 ** max(0, quick_deaths - 1))


def said_of(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


class Children:
    """All children, in the order in which they were started."""

    def __init__(self, on_change: Callable[[Child, str], None]) -> None:
        """`on_change(child, text)` hears of each death and each new start."""
        self._on_change = on_change
        self._watches: dict[str, tuple[Child, asyncio.Task[None]]] = {}
        self._stopping = False
        self._settled = False
        self.broken: asyncio.Future[CliError] = asyncio.get_running_loop().create_future()
        """Set when a child dies before `settled()`: then the fleet cannot start."""

    async def start(self, child: Child) -> None:
        """Start a child and watch it from now on."""
        await self._spawn(child, fresh=True)
        task = asyncio.create_task(self._watch(child), name=f"watch-{child.name}")
        task.add_done_callback(self._watch_ended)
        self._watches[child.name] = (child, task)

    def settled(self) -> None:
        """All is up: from now on a child that dies is started again."""
        self._settled = True

    async def stop(self, *groups: tuple[Child, ...], grace_s: float = STOP_S) -> None:
        """End the groups one after the other, each asked first and killed after `grace_s`. May be called twice."""
        self._stopping = True
        for group in groups:
            await self._end(group, grace_s)
        for _, task in self._watches.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._watches.values()), return_exceptions=True)

    def kill(self) -> None:
        """End all of them at once."""
        self._stopping = True
        for child, _ in self._watches.values():
            _signal(child, signal.SIGKILL)

    async def _spawn(self, child: Child, *, fresh: bool) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        with child.log.open("wb" if fresh else "ab") as log:
            child.process = await asyncio.create_subprocess_exec(
                *tethered(child.command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(child.environment),
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end them in order
            )
        child.pid = child.process.pid

    async def _watch(self, child: Child) -> None:
        while True:
            assert child.process is not None  # noqa: S101  _spawn has just set it
            started = time.monotonic()
            returncode = await child.process.wait()
            pid, child.pid, child.ended = child.pid, None, said_of(returncode)
            if self._stopping:
                return
            if not self._settled:
                self._broke(child, returncode)
                return
            child.quick_deaths = 1 if time.monotonic() - started >= SETTLED_S else child.quick_deaths + 1
            delay_s = restart_delay_s(child.quick_deaths)
            self._on_change(child, f"{child.name} (pid {pid}) {child.ended}; started again in {delay_s:.0f} s")
            await asyncio.sleep(delay_s)
            await self._port_of_its_own(child)
            if self._stopping:
                return
            await self._spawn(child, fresh=False)
            self._on_change(child, f"{child.name} is started again (pid {child.pid})")

    async def _port_of_its_own(self, child: Child) -> None:
        told = False
        while child.port is not None and not is_free(child.port) and not self._stopping:
            if not told:
                self._on_change(child, f"{child.name} waits: another program listens on its port {child.port}")
                told = True
            await asyncio.sleep(RESTART_S)

    def _broke(self, child: Child, returncode: int) -> None:
        if not self.broken.done():
            text = f"{child.name} {child.ended} before it was ready; its log, {child.log}, ends:\n{child.log_tail()}"
            self.broken.set_result(CliError(text, returncode if returncode in (4, 69) else 1))

    def _watch_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.broken.done():
            self.broken.set_result(CliError(f"{task.get_name()} failed: {error!r}"))

    async def _end(self, group: tuple[Child, ...], grace_s: float) -> None:
        waits = [asyncio.create_task(child.process.wait()) for child in group if child.pid and child.process]
        if not waits:
            return
        for child in group:
            _signal(child, signal.SIGTERM)
            _signal(child, signal.SIGCONT)
        _, late = await asyncio.wait(waits, timeout=grace_s)
        if late:
            for child in group:
                _signal(child, signal.SIGKILL)
            await asyncio.wait(late)


def _signal(child: Child, number: signal.Signals) -> None:
    if child.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)
