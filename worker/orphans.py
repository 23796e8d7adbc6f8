"""Engines of an earlier life: noted on disk when they start, ended when the next life begins.

A pid alone may be anybody's. A process is ended only if it began when the note says, or carries the engine's random tag
in its environment, and only if the worker that started it is gone.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import orjson
import psutil

from worker.spawn import TAG_VARIABLE

log = logging.getLogger(__name__)

_SAME_START_S: Final = 0.05
_GONE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered about a running engine. Times are Unix seconds as the kernel tells them."""

    pid: int
    started_at: float
    tag: str
    port: int
    worker_pid: int
    worker_started_at: float

    @staticmethod
    def of(pid: int, tag: str, port: int) -> Note | None:
        """The note of a process just started by this one; None if it has ended already."""
        try:
            return Note(pid, _started_at(pid), tag, port, os.getpid(), _started_at(os.getpid()))
        except psutil.NoSuchProcess:
            return None


class Notebook:
    """The notes of one worker: a file for each engine in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, engine_id: str, note: Note) -> None:
        """Remember an engine. Whole or not at all."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(engine_id)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(orjson.dumps(asdict(note)))
        fresh.replace(path)

    def erase(self, engine_id: str) -> None:
        """Forget an engine that is gone. May be called twice."""
        self._path(engine_id).unlink(missing_ok=True)

    def reap(self) -> list[int]:
        """End what earlier lives left, wait until it is gone, return the pids. Blocks; call before engines start."""
        ended: list[int] = []
        for path in sorted(self._folder.glob("*.engine")):
            note = _read(path)
            if note is not None and _is_same(note.worker_pid, note.worker_started_at):
                continue
            ended += _end(note) if note is not None else []
            path.unlink(missing_ok=True)
        return ended

    def _path(self, engine_id: str) -> Path:
        return self._folder / f"{engine_id}.engine"


def _read(path: Path) -> Note | None:
    try:
        raw: dict[str, Any] = orjson.loads(path.read_bytes())
        return Note(**{field.name: raw[field.name] for field in fields(Note)})
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("a note about an engine cannot be read", extra={"event": "engine_note_bad", "error": str(error)})
        return None


def _end(note: Note) -> list[int]:
    """SIGKILL for the engine and whatever carries its tag: its worker is gone, so nobody waits for its work."""
    doomed = [process for process in psutil.process_iter() if _belongs(process, note)]
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)  # psutil checks once more that the pid was not reused
    _, left = psutil.wait_procs(doomed, timeout=_GONE_TIMEOUT_S)
    for process in left:
        log.error("an orphaned engine does not end", extra={"event": "engine_orphan_stuck", "pid": process.pid})
    return [process.pid for process in doomed]


def _belongs(process: psutil.Process, note: Note) -> bool:
    try:
        if process.pid == note.pid and abs(process.create_time() - note.started_at) < _SAME_START_S:
            return process.status() != psutil.STATUS_ZOMBIE
        return process.create_time() >= note.started_at - 1 and process.environ().get(TAG_VARIABLE) == note.tag
    except psutil.Error:
        return False


def _is_same(pid: int, started_at: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started_at) < _SAME_START_S
    except psutil.Error:
        return False


def _started_at(pid: int) -> float:
    return psutil.Process(pid).create_time()
