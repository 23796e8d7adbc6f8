"""Do notes, processes and states agree? Looked at again and again, and mended where they do not.

* dead: an engine is believed to run, and its process is not there;
* gone: a note speaks of an engine that nobody here has;
* unknown: a process carries the mark of this worker's notebook, and is of no engine of ours, nor of another worker that
  lives.

What differs in two looks in a row is mended: in between, engines start and stop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import psutil

from worker.minder import TAG_VARIABLE
from worker.orphans import HOME_VARIABLE, Notebook
from worker.remains import Remains, end_remains, is_same

log = logging.getLogger(__name__)

INTERVAL_S: Final = 10.0


class Resident(Protocol):
    """One engine, as far as its process is concerned."""

    engine_id: str

    @property
    def remains(self) -> Remains | None:
        """By what its processes are known, while there are any. `started_at` 0: it is no process of this host."""
        ...

    async def mend(self) -> None:
        """End what is left of its process, so that it is started again."""
        ...


class Counted(Protocol):
    """Who counts the looks."""

    def sync_begun(self) -> None:
        """A look begins."""
        ...

    def sync_done(self, engines: int) -> None:
        """So many engines are what they are taken for."""
        ...

    def sync_failed(self, error: Exception) -> None:
        """It could not be told."""
        ...

    def sync_mended(self, what: str, count: int) -> None:
        """So many did not agree: `dead`, `gone` or `unknown`."""
        ...


@dataclass(slots=True)
class Mended:
    """How often something did not agree, since the start."""

    dead: int = 0
    gone: int = 0
    unknown: int = 0


@dataclass(frozen=True, slots=True)
class Differences:
    """What one look found: engine ids, engine ids, tags."""

    dead: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    def both(self, other: Differences) -> Differences:
        """What two looks have in common."""
        return Differences(self.dead & other.dead, self.gone & other.gone, self.unknown & other.unknown)


@dataclass(slots=True)
class Lifecycle:
    """Looks after the engines of one worker. `engines` is asked at each look, `counted` is told of it."""

    state_dir: Path
    engines: Callable[[], Iterable[Resident]]
    counted: Counted | None = None
    mended: Mended = field(default_factory=Mended)
    _last: Differences = field(default_factory=Differences)

    async def run(self) -> None:
        """Look until cancelled. A look that failed says nothing about the engines."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.look()
            except (OSError, ValueError, psutil.Error) as error:
                log.exception("engine_sync_failed", extra={"event": "engine_sync_failed"})
                if self.counted is not None:
                    self.counted.sync_failed(error)

    async def look(self) -> None:
        """One look; mends what the last one found, too."""
        if self.counted is not None:
            self.counted.sync_begun()
        home = Notebook(self.state_dir / "engines").home
        processes = await asyncio.to_thread(marked, home)
        found = self._compare(processes)
        stale, self._last = found.both(self._last), found
        if stale != Differences():
            await self._mend(stale)
        if self.counted is not None:
            self.counted.sync_done(sum(each.engine_id not in found.dead for each in self.engines() if each.remains))

    def _compare(self, processes: Mapping[int, str]) -> Differences:
        residents = {each.engine_id: each.remains for each in self.engines()}
        here = {engine: remains for engine, remains in residents.items() if remains and remains.started_at}
        notes = Notebook(self.state_dir / "engines").notes()
        theirs = {engine: note.tag for engine, note in notes.items() if note and note.of_another_worker}
        tags = {remains.tag for remains in here.values()} | set(theirs.values())
        return Differences(
            dead=frozenset(name for name, each in here.items() if not is_same(each.pid, each.started_at)),
            gone=frozenset(engine for engine in notes if engine not in here and engine not in theirs),
            unknown=frozenset(tag for tag in processes.values() if tag not in tags),
        )

    async def _mend(self, stale: Differences) -> None:
        self.mended.dead += len(stale.dead)
        self.mended.gone += len(stale.gone)
        self.mended.unknown += len(stale.unknown)
        if self.counted is not None:
            for what in ("dead", "gone", "unknown"):
                self.counted.sync_mended(what, len(getattr(stale, what)))
        names = {"dead": sorted(stale.dead), "gone": sorted(stale.gone), "unknown": len(stale.unknown)}
        log.warning("engines, notes and processes do not agree", extra={"event": "engines_mended"} | names)
        for each in [each for each in self.engines() if each.engine_id in stale.dead]:
            await each.mend()
        for tag in stale.unknown:
            await asyncio.to_thread(end_remains, Remains(0, 0.0, tag))
        for engine in stale.gone:
            Notebook(self.state_dir / "engines").erase(engine)


def marked(home: str) -> dict[int, str]:
    """Living processes of this notebook's engines, by pid: their tags. Blocks."""
    found: dict[int, str] = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get(HOME_VARIABLE) == home and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = environment.get(TAG_VARIABLE, "")
        except (psutil.Error, OSError):
            continue
    return found
