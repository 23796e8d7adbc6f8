"""The one owner of what this node does about each model. Tasks and desired state only ask it.

One piece of work a model: to have it (`ensure`, joined by all who ask for the same), to read it again (`verify`), to
take it away (`remove`, which ends either of the others at once). All states are in `states()`, and are published.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Final, Protocol

from schemas.model import CopyProgress, CopyRecord, Wanted
from worker.copying import Copying, Listener, Parts, fingerprint, plain
from worker.sources import Corrupt, Source, SourceError, find_source
from worker.store.errors import NotHere, Removed, Superseded
from worker.store.manifest import Copy
from worker.store.progress import Meter
from worker.store.records import PROGRESS_S, Publish, Records
from worker.store.sharing import SharedFetches
from worker.store.store import Store
from worker.transfer.backoff import LONGEST_S, Backoff

log = logging.getLogger(__name__)
TIDY_S: Final = 60.0


class Limits(Protocol):
    """The settings that count here: those of the downloads."""

    @property
    def num_download_worker(self) -> int:
        """Models that may be on their way at once."""
        ...

    @property
    def download_retry(self) -> int:
        """Tries after the first."""
        ...

    @property
    def retry_interval_s(self) -> float:
        """Bound of the first wait."""
        ...


class _Job:
    """One piece of work on a model. `why`: what those who wait are told when it is ended before its time."""

    def __init__(self, kind: str, key: str, task: asyncio.Task[Copy]) -> None:
        self.kind = kind
        self.key = key
        self.task = task
        self.waiters = 0
        self.why: SourceError | None = None

    def end(self, why: SourceError) -> None:
        """End it: nobody joins it any more, and those who wait are told why."""
        self.key, self.why = "", self.why or why
        self.task.cancel()

    async def result(self) -> Copy:
        """Wait for the end, together with others; when the last one leaves, the work ends."""
        self.waiters += 1
        try:
            await asyncio.wait({self.task})
        finally:
            self.waiters -= 1
            if self.waiters == 0 and not self.task.done():
                self.end(Removed("nobody waits for it any more"))
        if self.task.cancelled():
            raise self.why or Removed("the worker stops")
        return self.task.result()


class Copies:
    """`publish` is told of each record, `catalogue` of the copies that can be served, whenever they change; both are
    plain calls. `protected`: models that no clearing may take, because a record wants them here."""

    def __init__(
        self,
        node: str,
        store: Store,
        parts: Parts,
        limits: Limits,
        *,
        publish: Publish,
        catalogue: Callable[[Iterable[Copy]], None],
        protected: Callable[[], Collection[str]] = tuple,
        find: Callable[[str], Source] = find_source,
        choose: Callable[[Wanted], Wanted] = plain,
        interval_s: float = PROGRESS_S,
        dice: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._limits = limits
        self._catalogue = catalogue
        self._protected = protected
        self._interval_s = interval_s
        self._dice = dice
        self._clock = clock
        self._records = Records(node, publish, interval_s=interval_s, clock=clock)
        self._shared = SharedFetches()
        self._parts = parts
        self._find = find
        self._choose = choose
        self._slots = asyncio.Semaphore(limits.num_download_worker)
        self._jobs: dict[str, _Job] = {}
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._discard: set[str] = set()
        self._listeners: dict[str, list[Listener]] = {}

    # -- lifetime ----------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Tell what the open store has."""
        for copy in self._store.copies().values():
            self._settled(copy)
        self._served()

    async def run(self) -> None:
        """Until cancelled: let old revisions and, above the high mark, unused models go."""
        while True:
            await asyncio.sleep(TIDY_S)
            try:
                await self._store.refresh()
                await self._store.tidy()
                await self.collect()
            except SourceError as error:
                log.error("tidy_failed", extra={"event": "tidy_failed", "code": error.code, "error": error.message})

    async def stop(self) -> None:
        """End all work; what has come of the files stays for the next start."""
        for job in self._jobs.values():
            job.task.cancel()
        ending: list[asyncio.Task[Any]] = [*(job.task for job in self._jobs.values()), *self._removals.values()]
        if ending:
            await asyncio.wait(ending)
        await self._store.close()

    # -- looking -----------------------------------------------------------------------------------------------------
    def states(self) -> Mapping[str, CopyRecord]:
        """What may be known of each copy: a view of now."""
        return self._records.all

    def tell_all(self) -> None:
        """Publish every record again, for a bucket that was lost."""
        self._records.tell_all()

    # -- asking ------------------------------------------------------------------------------------------------------
    async def ensure(self, want: Wanted, on_progress: Listener | None = None, *, again: bool = False) -> Copy:
        """Have the model on the disk as it is wanted. `again`: its files are fetched although they are here.

        Returns at once when it is there: with the policy `reuse_if_exists` the source is not asked then. Raises a
        `SourceError` after the tries of the settings, `Superseded` when other files of the model were asked for
        meanwhile, `Removed` when it was deleted. When the last one who waits is cancelled, the work ends; what has
        come stays for a week.
        """
        key = f"{fingerprint(want)}{again}"
        while (job := self._jobs.get(want.model)) is None or job.key != key:
            if want.model in self._removals:
                await asyncio.wait({self._removals[want.model]})
            elif job is not None and job.kind == "verify":
                await asyncio.wait({job.task})
            elif job is not None:
                await self._end(job, Superseded(f"other files of {want.model} were asked for"))
            else:
                self._start(want.model, "ensure", key, self._ensure(want, again=again))
        return await self._listened(want.model, job, on_progress)

    async def verify(self, model: str, on_progress: Listener | None = None) -> Copy:
        """Read the model's files again. Raises `Corrupt`, and then it is not served until an `ensure` has mended it;
        `NotHere`; `Removed`."""
        while (job := self._jobs.get(model)) is None or job.key != "verify":
            if model in self._removals:
                await asyncio.wait({self._removals[model]})
            elif job is not None:
                await asyncio.wait({job.task})
            else:
                self._start(model, "verify", "verify", self._verify(model))
        return await self._listened(model, job, on_progress)

    async def remove(self, model: str, *, retain: bool = False) -> None:
        """Take the model away, and end what is being done about it, at once. With `retain` its files stay. A model
        that is not here is no error. Raises a `SourceError` of the disk."""
        task = self._removals.get(model)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._remove(model, retain=retain), name=f"remove {model}")
            self._removals[model] = task
            task.add_done_callback(lambda _: self._removals.pop(model, None))
        await asyncio.shield(task)

    async def collect(self) -> list[str]:
        """Above the high mark: let the models that were used least recently go. Returns which."""
        gone = await self._store.collect(protected={*self._protected(), *self._jobs})
        for model in gone:
            self._records.move(model, "Deleting", reason="room was needed")
            self._records.drop(model)
        if gone:
            self._served()
        return gone

    # -- working -----------------------------------------------------------------------------------------------------
    def _start(self, model: str, kind: str, key: str, work: Coroutine[Any, Any, Copy]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{kind} {model}")
        job = self._jobs[model] = _Job(kind, key, task)

        def ended(_: asyncio.Task[Copy]) -> None:
            if self._jobs.get(model) is job:
                del self._jobs[model]
            if not task.cancelled():
                task.exception()

        task.add_done_callback(ended)

    async def _listened(self, model: str, job: _Job, listener: Listener | None) -> Copy:
        if listener is None:
            return await job.result()
        listeners = self._listeners.setdefault(model, [])
        listeners.append(listener)
        try:
            return await job.result()
        finally:
            listeners.remove(listener)
            if not listeners:
                self._listeners.pop(model, None)

    async def _end(self, job: _Job, why: SourceError) -> None:
        job.end(why)
        await asyncio.wait({job.task})

    async def _ensure(self, want: Wanted, *, again: bool) -> Copy:
        model, meter = want.model, Meter()
        backoff = Backoff(self._limits.retry_interval_s, self._limits.download_retry)
        if self._records.state(model) in (None, "Failed", "Deleting"):
            self._records.move(model, "Pending", source=want.source, reason="waits for its turn to be fetched")
        ticker = asyncio.get_running_loop().create_task(self._tick(model, meter), name=f"progress {model}")
        try:
            while True:
                try:
                    async with self._slots:
                        copy = await self._once(want, meter, again=again, attempt=backoff.failures + 1)
                except SourceError as error:
                    wait_s = backoff.failed(self._dice(), error.retry_after_s) if error.retryable else None
                    self._failed(want, error, wait_s, backoff.failures)
                    if wait_s is None:
                        raise
                    await asyncio.sleep(wait_s)
                    continue
                self._settled(copy)
                self._served()
                return copy
        except asyncio.CancelledError:
            self._given_up(model)
            raise
        finally:
            ticker.cancel()

    async def _once(self, want: Wanted, meter: Meter, *, again: bool, attempt: int) -> Copy:
        copying = Copying(
            self._store,
            self._parts,
            self._shared,
            self._choose(want),
            meter,
            find=self._find,
            step=lambda phase: self._step(want, meter, phase, attempt),
            protected=lambda: {*self._protected(), *self._jobs},
            discarded=lambda: want.model in self._discard,
        )
        return await copying.run(again=again)

    def _step(self, want: Wanted, meter: Meter, phase: str, attempt: int) -> None:
        """The work has come to another phase; a copy that is there is `Updating` from the moment that files come."""
        model, meter.phase = want.model, phase
        copy = self._store.copies().get(model)
        state = self._records.state(model)
        told = {"progress": meter.told(time.monotonic()), "source": want.source, "attempt": attempt}
        if copy is not None and not copy.broken:
            if phase != "resolving":
                self._records.move(model, "Updating", **told)
        elif phase == "checking":
            self._records.move(model, "Verifying", **told)
        elif state != "Downloading":
            self._records.move(model, "Downloading", **told)
        self._tell_progress(model, meter.told(time.monotonic()))

    async def _tick(self, model: str, meter: Meter) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._tell_progress(model, meter.told(time.monotonic()))

    def _tell_progress(self, model: str, progress: CopyProgress) -> None:
        if self._records.state(model) in ("Downloading", "Verifying", "Updating"):
            self._records.progress(model, progress)
        for listener in list(self._listeners.get(model, ())):
            listener(progress)

    def _failed(self, want: Wanted, error: SourceError, wait_s: float | None, attempt: int) -> None:
        """An update that failed leaves the copy as it was, with the reason beside it."""
        retry_at = None if wait_s is None else self._clock() + wait_s
        if wait_s is None and error.retryable:
            retry_at = self._clock() + (error.retry_after_s or LONGEST_S)
        told = {"reason": error.message, "error": error.code, "next_retry_at": retry_at}
        fields = {"event": "copy_failed", "model": want.model, "code": error.code, "error": error.message}
        log.warning("copy_failed", extra={**fields, "attempt": attempt, "retry_in_s": wait_s})
        copy = self._store.copies().get(want.model)
        if copy is not None and not copy.broken:
            self._records.ready(copy, **told)
        else:
            self._records.move(want.model, "Failed", source=want.source, **told)

    def _given_up(self, model: str) -> None:
        """Nobody waits for it any more: what was there before is what there is."""
        copy = self._store.copies().get(model)
        if model in self._removals:
            return
        if copy is None:
            self._records.move(model, "Deleting", reason="cancelled")
            self._records.drop(model)
        else:
            self._settled(copy)

    async def _verify(self, model: str) -> Copy:
        copy = self._store.copies().get(model)
        if copy is None:
            raise NotHere(f"this node has no copy of {model}")
        meter = Meter("verifying", copy.manifest.size_bytes, files_total=len(copy.manifest.files))
        self._records.move(model, "Verifying", progress=meter.told(time.monotonic()))
        ticker = asyncio.get_running_loop().create_task(self._tick(model, meter), name=f"progress {model}")
        try:
            bad = await self._store.verify(model, meter.came)
        finally:
            ticker.cancel()
            if model not in self._removals and (now := self._store.copies().get(model)) is not None:
                self._settled(now)
        if bad:
            self._served()
            raise Corrupt(f"the content of {', '.join(bad)} is not what it was; the next download mends it")
        return self._store.copies()[model]

    async def _remove(self, model: str, *, retain: bool) -> None:
        if self._records.state(model) is not None:
            self._records.move(model, "Deleting")
        job = self._jobs.get(model)
        self._discard |= set() if retain else {model}
        try:
            if job is not None:
                await self._end(job, Removed(f"{model} was deleted"))
            await self._store.remove(model, retain=retain)
        except SourceError as error:
            self._records.move(model, "Failed", reason=error.message, error=error.code)
            raise
        finally:
            self._discard.discard(model)
        self._records.drop(model)
        self._served()

    # -- telling -----------------------------------------------------------------------------------------------------
    def _settled(self, copy: Copy) -> None:
        if copy.broken:
            reason = f"{', '.join(copy.broken[:4])}: missing, or not what it was"
            told = {"source": copy.manifest.source, "revision": copy.revision}
            self._records.move(copy.model, "Failed", reason=reason, error="source_corrupt", **told)
            return
        if self._records.state(copy.model) == "Downloading":
            self._records.move(copy.model, "Verifying")
        self._records.ready(copy)

    def _served(self) -> None:
        self._catalogue([copy for copy in self._store.copies().values() if not copy.broken])
