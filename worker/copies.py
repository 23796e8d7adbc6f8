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

from schemas.model import CopyRecord, Wanted
from worker.copyevents import EVICTED
from worker.copying import Copying, Listener, Parts, fingerprint, plain
from worker.copyjob import Job, Watch
from worker.copystates import CopyStates
from worker.sources import Corrupt, Source, SourceError, find_source
from worker.store.errors import NeverFits, NotHere, Removed, Superseded, TooLate
from worker.store.manifest import Copy
from worker.store.progress import Meter
from worker.store.records import Publish, Records
from worker.store.sharing import SharedFetches
from worker.store.store import Store
from worker.transfer.backoff import Backoff

log = logging.getLogger(__name__)
TIDY_S: Final = 60.0
LOOK_S: Final = 2.0
"""How often the views that engines have open are marked for other workers."""
TOUCH_S: Final = 60.0
"""A model that is used is noted as such at most so often."""


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

    @property
    def download_timeout_s(self) -> float | None:
        """For a model, all tries together."""
        ...

    @property
    def progress_interval_s(self) -> float:
        """How often is told how far it is."""
        ...


class Copies:
    """`publish` is told of each record, `catalogue` of the copies that can be served, whenever they change; both are
    plain calls. `protected`: models that no clearing may take, because a record wants them here. `watch` counts."""

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
        watch: Watch | None = None,
        interval_s: float | None = None,
        dice: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._limits = limits
        self._catalogue = catalogue
        self._protected = protected
        self._dice = dice
        self._clock = clock
        interval_s = limits.progress_interval_s if interval_s is None else interval_s
        self._records = Records(node, publish, interval_s=interval_s, clock=clock)
        self._states = CopyStates(store, self._records, interval_s=interval_s, clock=clock)
        self._shared = SharedFetches()
        self._parts = parts
        self._find = find
        self._choose = choose
        self._watch = watch or Watch()
        self._slots = asyncio.Semaphore(limits.num_download_worker)
        self._jobs: dict[str, Job] = {}
        self._removals: dict[str, asyncio.Task[None]] = {}
        self._discard: set[str] = set()
        self._touched: dict[str, float] = {}
        self._touching: set[asyncio.Task[None]] = set()
        self.active = 0
        """Models that are being fetched."""
        self.steps = 0
        """Another number after each step and end of a fetch."""
        self._meters: dict[str, Meter] = {}

    # -- lifetime ----------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Tell what the open store has."""
        for copy in self._store.copies().values():
            self._states.settled(copy)
        self._served()

    async def run(self) -> None:
        """Until cancelled: see what other workers have changed, let old revisions and, above the high mark, unused
        models go, and mark what engines have open."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(TIDY_S, self.tidy), name="copies tidy")
            group.create_task(self._repeat(LOOK_S, self._store.hold_open), name="copies open")

    async def _repeat(self, every_s: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(every_s)
            try:
                await work()
            except SourceError as error:
                log.error("tidy_failed", extra={"event": "tidy_failed", "code": error.code, "error": error.message})

    async def tidy(self) -> None:
        """Look at the disks now, and clear what may go. Raises a `SourceError` of the disk."""
        try:
            await self._store.refresh()
        finally:
            self._compare()
        await self._store.tidy()
        await self.collect()

    async def stop(self) -> None:
        """End all work; what has come of the files stays for the next start."""
        for job in self._jobs.values():
            job.task.cancel()
        jobs = (job.task for job in self._jobs.values())
        ending: list[asyncio.Task[Any]] = [*jobs, *self._removals.values(), *self._touching]
        if ending:
            await asyncio.wait(ending)
        await self._store.close()

    # -- looking -----------------------------------------------------------------------------------------------------
    def states(self) -> Mapping[str, CopyRecord]:
        """What may be known of each copy: a view of now."""
        return self._records.all

    @property
    def waiting(self) -> int:
        """Models that wait for their turn, or for the next try."""
        return sum(job.kind == "ensure" for job in self._jobs.values()) - self.active

    @property
    def progress(self) -> tuple[int, int]:
        """Other numbers whenever any fetch has come further."""
        return self.steps, sum(meter.moves for meter in self._meters.values())

    def tell_all(self) -> None:
        """Publish every record again, for a bucket that was lost."""
        self._records.tell_all()

    def postpone(self, want: Wanted, reason: str, at: float) -> None:
        """Tell that the model will be fetched, or fetched again, and not before `at` (Unix seconds)."""
        model, record = want.model, self._records.all.get(want.model)
        if model in self._jobs or model in self._removals:
            return
        if record is None or record.state == "Pending":
            self._records.move(model, "Pending", source=want.source, reason=reason, next_retry_at=at)
        elif record.error is not None and record.next_retry_at != at:
            told = {"reason": record.reason, "error": record.error, "next_retry_at": at}
            self._records.move(model, record.state, **told)

    # -- asking ------------------------------------------------------------------------------------------------------
    async def ensure(
        self, want: Wanted, on_progress: Listener | None = None, *, again: bool = False, patient: bool = True
    ) -> Copy:
        """Have the model on the disk as it is wanted. `again`: its files are fetched although they are here. Not
        `patient`: another node can have it instead, so what this one lacks is not waited for.

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
                self._start(want.model, "ensure", key, self._ensure(want, again=again, patient=patient))
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
        await self._taken_away(model, retain=retain)

    async def _taken_away(self, model: str, *, retain: bool, reason: str | None = None) -> None:
        task = self._removals.get(model)
        if task is None:
            work = self._remove(model, retain=retain, reason=reason)
            task = asyncio.get_running_loop().create_task(work, name=f"remove {model}")
            self._removals[model] = task
            task.add_done_callback(lambda _: self._removals.pop(model, None))
        await asyncio.shield(task)

    async def collect(self) -> list[str]:
        """Above the high mark: let the models that were used least recently go. Returns which."""
        return await self._store.collect(protected=self._kept(), evict=self._evict)

    def used(self, model: str) -> None:
        """A request for the model begins: of those that may go it is the last. A plain call, which may come often."""
        now = self._clock()
        if model not in self._store.copies() or now - self._touched.get(model, -TOUCH_S) < TOUCH_S:
            return
        self._touched[model] = now
        task = asyncio.get_running_loop().create_task(self._touch(model), name=f"used {model}")
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _touch(self, model: str) -> None:
        try:
            await self._store.used(model)
        except SourceError as error:
            log.info("use_unnoted", extra={"event": "use_unnoted", "model": model, "error": error.message})

    def _kept(self) -> Collection[str]:
        return {*self._protected(), *self._jobs}

    async def _evict(self, model: str) -> None:
        if model not in self._jobs:
            await self._taken_away(model, retain=False, reason=EVICTED)

    # -- working -----------------------------------------------------------------------------------------------------
    def _start(self, model: str, kind: str, key: str, work: Coroutine[Any, Any, Copy]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"{kind} {model}")
        job = self._jobs[model] = Job(kind, key, task)

        def ended(_: asyncio.Task[Copy]) -> None:
            if self._jobs.get(model) is job:
                del self._jobs[model]
            if not task.cancelled():
                task.exception()

        task.add_done_callback(ended)

    async def _listened(self, model: str, job: Job, listener: Listener | None) -> Copy:
        if listener is None:
            return await job.result()
        with self._states.heard(model, listener):
            return await job.result()

    async def _end(self, job: Job, why: SourceError) -> None:
        job.end(why)
        await asyncio.wait({job.task})

    async def _ensure(self, want: Wanted, *, again: bool, patient: bool) -> Copy:
        model, meter = want.model, Meter()
        backoff = Backoff(self._limits.retry_interval_s, self._limits.download_retry)
        self._states.begins(want)
        try:
            with self._states.under_way(model, meter):
                copy = await self._in_time(want, meter, backoff, again=again, patient=patient)
        except asyncio.CancelledError:
            self._ended(model, "cancelled")
            raise
        self._states.settled(copy)
        self._served()
        return copy

    async def _in_time(self, want: Wanted, meter: Meter, backoff: Backoff, *, again: bool, patient: bool) -> Copy:
        """Raises the last `SourceError`, or that all tries together took too long."""
        limit = asyncio.timeout(self._limits.download_timeout_s)
        try:
            async with limit:
                return await self._tried(want, meter, backoff, again=again, patient=patient)
        except TimeoutError:
            if not limit.expired():
                raise
            text = f"not here after {self._limits.download_timeout_s:g} s (downloads.download_timeout_s)"
            late = TooLate(text)
            self._states.failed(want, late, None, backoff.failures)
            self._count(want.model, late)
            raise late from None

    async def _tried(self, want: Wanted, meter: Meter, backoff: Backoff, *, again: bool, patient: bool) -> Copy:
        """Raises the last `SourceError`."""
        while True:
            try:
                return await self._turn(want, meter, again=again, attempt=backoff.failures + 1)
            except SourceError as error:
                worth = error.retryable and (patient or not error.of_node)
                wait_s = backoff.failed(self._dice(), error.retry_after_s) if worth else None
                self._states.failed(want, error, wait_s, backoff.failures)
                if wait_s is None:
                    self._count(want.model, error)
                    raise
            await asyncio.sleep(wait_s)

    def _ended(self, model: str, why_gone: str) -> None:
        if model not in self._removals:
            self._states.ended(model, why_gone)

    async def _turn(self, want: Wanted, meter: Meter, *, again: bool, attempt: int) -> Copy:
        async with self._slots:
            self.active += 1
            self._meters[want.model] = meter
            try:
                return await self._once(want, meter, again=again, attempt=attempt)
            finally:
                self.active -= 1
                self.steps += 1
                self._meters.pop(want.model, None)

    async def _once(self, want: Wanted, meter: Meter, *, again: bool, attempt: int) -> Copy:
        begun_at = time.monotonic()
        copying = Copying(
            self._store,
            self._parts,
            self._shared,
            self._choose(want),
            meter,
            find=self._find,
            step=lambda phase: self._step(want, meter, phase, attempt),
            protected=self._kept,
            evict=self._evict,
            discarded=lambda: want.model in self._discard,
            watch=self._watch,
        )
        copy = await copying.run(again=again)
        if copying.installed:
            self._watch.fetched(want.model, time.monotonic() - begun_at)
        return copy

    def _step(self, want: Wanted, meter: Meter, phase: str, attempt: int) -> None:
        self.steps += 1
        self._states.step(want, meter, phase, attempt)

    def _count(self, model: str, error: SourceError) -> None:
        if isinstance(error, NeverFits):
            self._watch.skipped(model, error.code)
        else:
            self._watch.failed(model, error)

    async def _verify(self, model: str) -> Copy:
        copy = self._store.copies().get(model)
        if copy is None:
            raise NotHere(f"this node has no copy of {model}")
        meter = Meter("verifying", copy.manifest.size_bytes, files_total=len(copy.manifest.files))
        self._records.move(model, "Verifying", progress=meter.told(time.monotonic()))
        begun_at = time.monotonic()
        try:
            with self._states.under_way(model, meter):
                bad = await self._store.verify(model, meter.came)
        finally:
            self._ended(model, "its files are not there any more")
        took_s = time.monotonic() - begun_at
        self._watch.verified(good=not bad, seconds=took_s)
        fields = {"event": "verification", "model": model, "good": not bad, "took_s": round(took_s, 3)}
        log.log(logging.ERROR if bad else logging.INFO, "verification %s", "failed" if bad else "passed", extra=fields)
        if bad:
            self._compare()
            self._served()
            raise Corrupt(f"the content of {', '.join(bad)} is not what it was; the next download mends it")
        if model not in self._store.copies():
            raise NotHere(f"{model} was taken away while it was read")
        return self._store.copies()[model]

    async def _remove(self, model: str, *, retain: bool, reason: str | None) -> None:
        if self._records.state(model) is not None:
            self._records.move(model, "Deleting", reason=reason)
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
    def _compare(self) -> None:
        if self._states.compare({*self._jobs, *self._removals}):
            self._served()

    def _served(self) -> None:
        self._catalogue([copy for copy in self._store.copies().values() if not copy.broken])
