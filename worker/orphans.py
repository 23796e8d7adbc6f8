"""Engines that run, noted on disk, so that the next life of a worker can take them over or end them.

A note is a file of this user's alone, for it holds the engine's key. One that cannot be written costs no more than
that: the engine runs, and cannot be taken over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import orjson

from worker.remains import Remains, end_remains, is_same, started_at

log = logging.getLogger(__name__)

HOME_VARIABLE: Final = "PUNA_ENGINE_HOME"
"""Environment variable of an engine: the notebook that it is noted in, so that one that is not noted is found too."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered about a running engine. Times are Unix seconds as the kernel tells them."""

    pid: int
    started_at: float
    tag: str
    port: int
    worker_pid: int
    worker_started_at: float
    minder_pid: int = 0
    minder_started_at: float = 0.0
    socket: str = ""
    key: str = ""
    fingerprint: str = ""
    """Of build, model, flags and pinned environment (`adoption.fingerprint`)."""
    model: str = ""
    devices: tuple[str, ...] = ()
    slots: int = 1
    context_tokens: int | None = None
    """As it was decided for this start."""
    ready: bool = False
    load_seconds: float | None = None
    scratch: str | None = None
    cgroup: str | None = None

    @staticmethod
    def of(pid: int, tag: str, port: int, **more: Any) -> Note | None:
        """The note of a process just started for this one; None if it has ended already."""
        began, mine = started_at(pid), started_at(os.getpid())
        return None if began is None or mine is None else Note(pid, began, tag, port, os.getpid(), mine, **more)

    @property
    def remains(self) -> Remains:
        """By what its processes are known."""
        return Remains(self.pid, self.started_at, self.tag)

    @property
    def worker_lives(self) -> bool:
        """Whether the worker that wrote it is still there, perhaps frozen."""
        return is_same(self.worker_pid, self.worker_started_at)

    @property
    def of_another_worker(self) -> bool:
        """Whether another worker that lives looks after it."""
        return self.worker_pid != os.getpid() and self.worker_lives

    @property
    def runs(self) -> bool:
        """Whether the engine is still there."""
        return is_same(self.pid, self.started_at)


class Notebook:
    """The notes of one worker: a file for each engine in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def home(self) -> str:
        """Its name among the notebooks of this host: the folder's whole path."""
        return str(self._folder.absolute())

    def write(self, engine_id: str, note: Note) -> None:
        """Remember an engine. Whole or not at all; that it could not be written is logged."""
        path = self._path(engine_id)
        fresh = path.with_suffix(".new")
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600, exist_ok=False)
            fresh.write_bytes(orjson.dumps(asdict(note)))
            fresh.replace(path)
        except OSError as error:
            fields = {"event": "engine_note_unwritten", "engine": engine_id, "reason": error.strerror}
            log.warning("an engine cannot be noted: no later worker takes it over", extra=fields)
            self.erase(engine_id)

    def erase(self, engine_id: str) -> None:
        """Forget an engine that is gone. May be called twice."""
        for path in (self._path(engine_id), self._path(engine_id).with_suffix(".new")):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                fields = {"event": "engine_note_stays", "engine": engine_id, "reason": error.strerror}
                log.warning("the note of an engine that is gone stays", extra=fields)

    def notes(self) -> Mapping[str, Note | None]:
        """All notes by engine id; None for one that cannot be read."""
        return {path.stem: _read(path) for path in sorted(self._folder.glob("*.engine"))}

    def reap(self, *, keep: frozenset[str] = frozenset()) -> list[int]:
        """End what earlier lives left, but for the engines of `keep`; wait until it is gone, return the pids.

        Blocks; call before engines start. An engine whose worker lives is left alone.
        """
        ended: list[int] = []
        for engine_id, note in self.notes().items():
            if engine_id in keep or (note is not None and note.worker_lives):
                continue
            ended += end_remains(note.remains) if note is not None else []
            if note is not None and note.socket:
                Path(note.socket).unlink(missing_ok=True)
            self.erase(engine_id)
        return ended

    def _path(self, engine_id: str) -> Path:
        return self._folder / f"{engine_id}.engine"


def _read(path: Path) -> Note | None:
    try:
        raw: dict[str, Any] = orjson.loads(path.read_bytes())
        known: dict[str, Any] = {field.name: raw[field.name] for field in fields(Note) if field.name in raw}
        known["devices"] = tuple(known.get("devices", ()))
        return Note(**known)
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("a note about an engine cannot be read", extra={"event": "engine_note_bad", "error": str(error)})
        return None
