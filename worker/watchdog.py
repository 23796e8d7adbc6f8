"""Does a running engine still work? A plain decider over what two looks show, and the looking itself.

Never by unanswered questions alone while it is busy: in the middle of an answer an engine may not answer for minutes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from web.call import CallFailed
from web.client import Client

log = logging.getLogger(__name__)

STOPPED_LOOKS: Final = 2
SILENT_LOOKS: Final = 3
_GAP_FACTOR: Final = 4
"""A look that comes so many intervals late says that this process was frozen, not the engine."""
_VMSTAT: Final = Path("/proc/vmstat")
_PIDS_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look showed. `at` is seconds of a monotonic clock; `cpu_s` and `busy` are None where nobody tells."""

    at: float
    stopped: bool
    cpu_s: float | None
    busy: int | None
    answered: bool | None = None
    """To a question that was asked since the last look, if one was."""


class Watch:
    """Judges one process by its sights. `see` gives the reason why it hangs, or None."""

    def __init__(self, hang_timeout_s: float, interval_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._gap_s = interval_s * _GAP_FACTOR
        self._last: Sight | None = None
        self._stopped = self._silent = 0
        self._still_since: float | None = None

    def see(self, sight: Sight) -> str | None:
        """One more look."""
        last, self._last = self._last, sight
        if last is not None and sight.at - last.at > self._gap_s and not sight.answered:
            self._stopped = self._silent = 0
            self._still_since = None
            return None
        self._stopped = self._stopped + 1 if sight.stopped else 0
        if sight.busy != 0 or sight.answered:
            self._silent = 0
        elif sight.answered is False:
            self._silent += 1
        self._still_since = self._still(last, sight)
        return self._verdict(sight)

    def _still(self, last: Sight | None, sight: Sight) -> float | None:
        if not sight.busy or last is None or sight.cpu_s is None or last.cpu_s != sight.cpu_s:
            return None
        return sight.at if self._still_since is None else self._still_since

    def _verdict(self, sight: Sight) -> str | None:
        if self._stopped >= STOPPED_LOOKS:
            return "hang: its process is stopped (state T)"
        if self._silent >= SILENT_LOOKS:
            return f"hang: idle, and no answer to {SILENT_LOOKS} health checks in a row"
        if self._still_since is not None and sight.at - self._still_since >= self._hang_timeout_s:
            return f"hang: busy, and no processor time used for {self._hang_timeout_s:g} s (hang_timeout_s)"
        return None


@dataclass(frozen=True, slots=True)
class Patient:
    """What is watched. `busy` tells the requests in it; None: nobody knows, so it is asked nothing."""

    pid: int
    client: Client
    busy: Callable[[], int] | None
    is_ready: Callable[[], bool]
    each_look: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds."""

    interval_s: float
    health_interval_s: float
    hang_timeout_s: float


async def hang(patient: Patient, rhythm: Rhythm) -> str:
    """Watch it until it hangs; returns the reason. To be cancelled when the process ends."""
    # a health check takes its own time, so the gap between two looks may be as long
    watch = Watch(rhythm.hang_timeout_s, rhythm.interval_s + rhythm.health_interval_s)
    asked_at = time.monotonic()
    while True:
        await asyncio.sleep(rhythm.interval_s)
        try:
            patient.each_look()
            due = time.monotonic() - asked_at >= rhythm.health_interval_s
            asked_at = time.monotonic() if due else asked_at
            why = watch.see(await _look(patient, rhythm.health_interval_s if due else None))
        except Exception:  # a look that failed says nothing about the engine
            log.exception("watchdog_look_failed", extra={"event": "watchdog_look_failed", "engine_pid": patient.pid})
            continue
        if why is not None:
            return why


async def _look(patient: Patient, ask_s: float | None) -> Sight:
    busy = patient.busy() if patient.busy is not None and patient.is_ready() else None
    answered = None
    if ask_s is not None and busy == 0:
        answered = await _answers(patient.client, ask_s)
        busy = patient.busy() if patient.busy is not None else None
    stopped, cpu_s = _process(patient.pid)
    return Sight(time.monotonic(), stopped, cpu_s, busy, answered)


async def _answers(client: Client, limit_s: float) -> bool:
    try:
        await client.fetch("GET", "/health", timeout_s=limit_s)
    except CallFailed:
        return False
    return True


def _process(pid: int) -> tuple[bool, float | None]:
    """Whether it, or what it started, is stopped, and the processor time of all of them."""
    stopped, cpu_s, found = False, 0.0, False
    for each in _family(pid):
        with suppress(psutil.Error):
            process = psutil.Process(each)
            with process.oneshot():
                times = process.cpu_times()
                cpu_s += times.user + times.system
                stopped = stopped or process.status() == psutil.STATUS_STOPPED
                found = True
    return stopped, cpu_s if found else None


def _family(pid: int) -> list[int]:
    """The process and its descendants, where that is cheap to know (Linux); a wrapper script's engine is its child."""
    family = [pid]
    for each in family:
        if len(family) >= _PIDS_LIMIT:
            break
        with suppress(OSError):
            family += [int(word) for word in Path(f"/proc/{each}/task/{each}/children").read_bytes().split()]
    return family


def system_oom_kills() -> int | None:
    """How many processes this system has killed for lack of memory since it started; None where nobody counts."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


class MemoryDeaths:
    """Was a kill the system's, for lack of memory? The engine's own cgroup knows (`told`, None: it has none); else the
    system's counter must have moved a moment ago."""

    def __init__(self, told: Callable[[], bool | None] | None) -> None:
        self._told = told
        self._seen = self._before = system_oom_kills()

    def look(self) -> None:
        """Remember the counter. The look before the last one counts: a kill may be told late."""
        self._before, self._seen = self._seen, system_oom_kills()

    def happened(self) -> bool:
        """After an end by SIGKILL."""
        told = self._told() if self._told is not None else None
        if told is not None:
            return told
        now = system_oom_kills()
        return now is not None and self._before is not None and now > self._before
