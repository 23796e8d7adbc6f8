"""Ends what is left of an engine, and nobody else's process.

A pid alone may be anybody's. A process is ended only if it began when it should have, or carries the engine's random
tag in its environment.
"""

from __future__ import annotations

import logging
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psutil

from worker.minder import TAG_VARIABLE

log = logging.getLogger(__name__)

_SAME_START_S: Final = 0.05
_GONE_TIMEOUT_S: Final = 5.0
_POLL_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Remains:
    """By what the processes of an engine are known. `started_at` is Unix seconds as the kernel tells them."""

    pid: int
    started_at: float
    tag: str


def end_remains(remains: Remains) -> list[int]:
    """SIGKILL for the engine and whatever carries its tag, its minder too; waits until they are gone. Blocks.

    Returns their pids.
    """
    doomed = [process for process in psutil.process_iter() if _belongs(process, remains)]
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)  # psutil checks once more that the pid was not reused
    until = time.monotonic() + _GONE_TIMEOUT_S
    while (left := [process for process in doomed if not is_dead(process)]) and time.monotonic() < until:
        time.sleep(_POLL_S)
    for process in left:
        log.error("an orphaned engine does not end", extra={"event": "engine_orphan_stuck", "pid": process.pid})
    return [process.pid for process in doomed]


def is_dead(process: psutil.Process) -> bool:
    """A zombie is dead: who collects it is somebody else's affair."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _belongs(process: psutil.Process, remains: Remains) -> bool:
    try:
        if process.pid == remains.pid and abs(process.create_time() - remains.started_at) < _SAME_START_S:
            return process.status() != psutil.STATUS_ZOMBIE
        if process.create_time() < remains.started_at - 1:
            return False
        return bool(remains.tag) and process.environ().get(TAG_VARIABLE) == remains.tag
    except psutil.Error:
        return False


def started_at(pid: int) -> float | None:
    """When a process began; None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def is_same(pid: int, began: float) -> bool:
    """Whether the process of that time still lives."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - began) < _SAME_START_S
    except psutil.Error:
        return False
