"""What is told of each copy while something is done about it, and once that has ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager

from schemas.model import CopyProgress, CopyRecord, ModelRecord, Wanted
from worker.copying import Listener
from worker.sources import Corrupt, SourceError
from worker.store.manifest import Copy
from worker.store.progress import Meter
from worker.store.records import Records
from worker.store.store import Store
from worker.transfer.backoff import LONGEST_S

log = logging.getLogger(__name__)


class CopyStates:
    """Moves the records as the work goes on, and tells those who listen to it how far it is."""

    def __init__(self, store: Store, records: Records, *, interval_s: float, clock: Callable[[], float]) -> None:
        self.records = records
        self._store = store
        self._interval_s = interval_s
        self._clock = clock
        self._listeners: dict[str, list[Listener]] = {}

    # -- how far it is -----------------------------------------------------------------------------------------------
    @contextmanager
    def heard(self, model: str, listener: Listener) -> Generator[None]:
        """Tell the listener meanwhile."""
        listeners = self._listeners.setdefault(model, [])
        listeners.append(listener)
        try:
            yield
        finally:
            listeners.remove(listener)
            if not listeners:
                self._listeners.pop(model, None)

    @contextmanager
    def under_way(self, model: str, meter: Meter) -> Generator[None]:
        """Tell regularly how far it is meanwhile."""
        ticker = asyncio.get_running_loop().create_task(self._tick(model, meter), name=f"progress {model}")
        try:
            yield
        finally:
            ticker.cancel()

    async def _tick(self, model: str, meter: Meter) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._progress(model, meter.told(time.monotonic()))

    def _progress(self, model: str, progress: CopyProgress) -> None:
        if self.records.state(model) in ("Downloading", "Verifying", "Updating"):
            self.records.progress(model, progress)
        for listener in list(self._listeners.get(model, ())):
            listener(progress)

    # -- steps -------------------------------------------------------------------------------------------------------
    def begins(self, want: Wanted) -> None:
        """It is asked for."""
        if self.records.state(want.model) in (None, "Failed", "Deleting"):
            reason = "waits for its turn to be fetched"
            self.records.move(want.model, "Pending", source=want.source, reason=reason)

    def step(self, want: Wanted, meter: Meter, phase: str, attempt: int) -> None:
        """The work has come to another phase; a copy that is there is `Updating` from the moment that files come."""
        model, meter.phase = want.model, phase
        copy = self._store.copies().get(model)
        told = {"progress": meter.told(time.monotonic()), "source": want.source, "attempt": attempt}
        if copy is not None and not copy.broken:
            if phase != "resolving":
                self.records.move(model, "Updating", **told)
        elif phase == "checking":
            self.records.move(model, "Verifying", **told)
        elif self.records.state(model) != "Downloading":
            self.records.move(model, "Downloading", **told)
        self._progress(model, meter.told(time.monotonic()))

    def failed(self, want: Wanted, error: SourceError, wait_s: float | None, attempt: int) -> None:
        """An update that failed leaves the copy as it was, with the reason beside it."""
        retry_at = None if wait_s is None else self._clock() + wait_s
        if wait_s is None and error.retryable:
            retry_at = self._clock() + (error.retry_after_s or LONGEST_S)
        told = {"reason": error.message, "error": error.code, "next_retry_at": retry_at}
        fields = {"event": "copy_failed", "model": want.model, "code": error.code, "error": error.message}
        log.warning("copy_failed", extra={**fields, "attempt": attempt, "retry_in_s": wait_s})
        copy = self._store.copies().get(want.model)
        if copy is not None and not copy.broken:
            self.records.ready(copy, **told)
        else:
            generation = want.generation if isinstance(want, ModelRecord) else None
            self.records.move(want.model, "Failed", source=want.source, generation=generation, **told)

    # -- what there is -----------------------------------------------------------------------------------------------
    def settled(self, copy: Copy) -> None:
        """Nothing is done about a copy any more."""
        if copy.broken:
            reason = f"{', '.join(copy.broken[:4])}: missing, or not what it was"
            told = {"source": copy.manifest.source, "revision": copy.revision}
            self.records.move(copy.model, "Failed", reason=reason, error=Corrupt.code, **told)
            return
        if self.records.state(copy.model) == "Downloading":
            self.records.move(copy.model, "Verifying")
        self.records.ready(copy)

    def ended(self, model: str, why_gone: str) -> None:
        """What was done about a model has ended: what there is now is told."""
        copy = self._store.copies().get(model)
        if self.records.state(model) == "Deleting":
            self.records.drop(model)
        if copy is not None:
            self.settled(copy)
        elif self.records.state(model) is not None:
            self.records.move(model, "Deleting", reason=why_gone)
            self.records.drop(model)

    def compare(self, busy: Collection[str]) -> bool:
        """Have the records tell what is on the disks, where another worker or a person has changed that; those of
        `busy` models are left alone. Returns whether anything was new."""
        copies = self._store.copies()
        known = {model: record for model, record in self.records.all.items() if model not in busy}
        gone = [model for model, record in known.items() if record.state == "Ready" and model not in copies]
        new = [model for model, copy in copies.items() if model not in busy and _differs(copy, known.get(model))]
        for model in (*gone, *new):
            self.ended(model, "its files are not there any more")
        return bool(gone or new)


def _differs(copy: Copy, record: CopyRecord | None) -> bool:
    """Whether a record tells of something else than the copy that is there."""
    if record is None or record.state == "Deleting":
        return True
    if record.state == "Failed":
        return not copy.broken
    return record.state == "Ready" and (bool(copy.broken) or record.revision != copy.revision)
