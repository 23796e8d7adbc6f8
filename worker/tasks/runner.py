"""Does tasks: reads, claims, works, writes the end, and only then acknowledges.

The order is what keeps a task from being lost, done twice or finished by two: the claim is stored before the work, the
dead letter before the record that says `dead`, the record before the acknowledgement. Whoever finds in a write that the
record is another's stops and says nothing more of the message.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Final, cast

import orjson

from bus.connection import Bus
from bus.job import Job
from bus.kv import Entry
from bus.watched import Tasks
from schemas.errors import PunaError
from schemas.task import TASK_KINDS, TaskOp, TaskRecord, derived_id, moved, read_task
from worker.tasks import decide, letters, unable
from worker.tasks.cancelling import Queue
from worker.tasks.decide import Claim, Clash, Done, Doubled, End, Failure, Heard, Later, Me, Refusal, Stored
from worker.tasks.effects import HEAVY, Asked, Effects, Stopped, TaskFailed
from worker.tasks.hand import keep, settle
from worker.tasks.records import Fenced, Records, holds, stored_of
from worker.tasks.run import Run

log = logging.getLogger(__name__)

PROGRESS_S: Final = 2.0
SIGNS_IN_ACK_WAIT: Final = 4
"""Signs of life in each `ack_wait`: a lost one or two do not matter."""
STOP_LIMIT_S: Final = 5.0
"""For giving back what runs, while the node stops."""


class Runner:
    """Owner of the tasks that run here. `others`: whether another node that lives suits a task, those
    left out that are named."""

    def __init__(
        self,
        bus: Bus,
        me: Me,
        effects: Effects,
        records: Records,
        *,
        tasks: Tasks,
        capacity: int,
        ack_wait_s: float,
        others: Callable[[Asked, Collection[str]], Awaitable[bool]],
        tell: Callable[..., None],
        progress_s: float = PROGRESS_S,
        clock: Callable[[], float] = time.time,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._bus = bus
        self._me = me
        self._effects = effects
        self._records = records
        self._queue = Queue(bus)
        self._letters = letters.Letters(bus, me.node, clock)
        self._tasks = tasks
        self._capacity = capacity
        self._room = asyncio.Semaphore(capacity)
        self._sign_every_s = ack_wait_s / SIGNS_IN_ACK_WAIT
        self._progress_s = min(progress_s, self._sign_every_s)
        self._others = others
        self._tell = tell
        self._clock = clock
        self._dice = dice
        self._runs: dict[str, Run] = {}
        self._in_hand: dict[int, str] = {}
        """Messages that are being worked on, waited with or decided about: sequence and task."""
        self._waiting = 0
        self._closed = self._stopping = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Tasks that run here."""
        return len(self._runs)

    @property
    def waiting(self) -> int:
        """Tasks that name this node and wait until fewer run."""
        return self._waiting

    # -- plain: what the consumers and the bucket bring --------------------------------------------------------------
    def take(self, job: Job) -> None:
        """A message has come."""
        if self._closed:
            job.nak(decide.BUSY_DELAY_S)
        else:
            self._tasks.start(f"task {job.stream_sequence}", self._handle(job))

    def changed(self, entries: Mapping[str, Entry]) -> None:
        """The records are these now. Only those of tasks that run here are looked at."""
        for task, run in tuple(self._runs.items()):
            entry = entries.get(task)
            if entry is not None and entry.revision > run.stored.revision:
                stored = stored_of(entry)
                run.seen(stored, held=stored is not None and holds(stored.record, run.stored.record))

    async def resume(self) -> None:
        """Go on with what an earlier life of this node had in its hands, here and at once, before others are handed it:
        what has come of the files is on this disk. Whatever dies in between, the message is still in the queue.
        """
        for stored in await self._records.all():
            record = decide.on_restart(stored.record, self._me, self._clock())
            if record is not None:
                try:
                    await self._resume(await self._records.claim(record, stored))
                except Fenced:
                    continue  # another node was handed it

    async def _resume(self, mine: Stored) -> None:
        record = mine.record
        job = await self._queue.job_of(record)
        if job is None:
            await self._records.hold(decide.on_message_gone(record, self._clock()).record, mine)
            return
        job.working()
        log.info("task_resumed", extra={"event": "task_resumed", "task": record.task, "epoch": record.epoch})
        self._tasks.start(f"task {job.stream_sequence}", self._handle(job, mine=True))

    def close(self) -> None:
        """Begin nothing any more."""
        self._closed = True

    async def stop(self) -> None:
        """Give back what runs, so that it goes on elsewhere at once. Safe to call twice."""
        self._closed = self._stopping = True
        for run in tuple(self._runs.values()):
            run.end("stopping")
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self._idle.wait()
        except TimeoutError:
            log.warning("tasks_left", extra={"event": "tasks_left", "tasks": list(self._runs)})

    # -- one message -------------------------------------------------------------------------------------------------
    async def _handle(self, job: Job, *, mine: bool = False) -> None:
        """`mine`: its record is of this process already."""
        op = job.subject
        try:
            op, node = self._bus.names.task_parts(job.subject)
            task = read_task(op, job.payload, node)
        except PunaError as error:
            await self._malformed(job, op, error)
            return
        found = cast(TaskOp, op)
        own_id = str(task.id) != derived_id(op, orjson.loads(job.payload), node)
        model = getattr(task, "model", None)
        at = (job.stream_sequence, job.published_at)
        heard = Heard(str(task.id), found, model, *at, own_id, job.reply)
        asked = Asked(found, task, node is not None, job.published_at)
        if self._goes_on(heard, job):
            return
        self._in_hand[heard.sequence] = heard.task
        try:
            await self._heard(heard, asked, job, mine)
        finally:
            self._in_hand.pop(heard.sequence, None)

    def _goes_on(self, heard: Heard, job: Job) -> bool:
        """Whether it is in our hands: then the signs of life of its last delivery were lost, and it is ours by this
        one."""
        if self._in_hand.get(heard.sequence) != heard.task:
            return False
        run = self._runs.get(heard.task)
        if run is not None:
            run.job = job
        keep(job)
        return True

    async def _heard(self, heard: Heard, asked: Asked, job: Job, mine: bool) -> None:
        if asked.op not in HEAVY:
            await self._begin(heard, asked, job, mine)
            return
        if self._room.locked() and not asked.named:
            job.nak(decide.BUSY_DELAY_S)
            return
        if self._room.locked():
            mine = await self._wait_for_room(heard, job) or mine
        else:
            await self._room.acquire()
        try:
            await self._begin(heard, asked, job, mine)
        finally:
            self._room.release()

    async def _wait_for_room(self, heard: Heard, job: Job) -> bool:
        """Until fewer run here. True: its record says that it waits, and is of this process."""
        async with asyncio.TaskGroup() as group:
            signs = group.create_task(self._sign(job))
            self._waiting += 1
            try:
                mine = await self._say_that_it_waits(heard)
                await self._room.acquire()
            finally:
                self._waiting -= 1
                signs.cancel()
        return mine

    async def _say_that_it_waits(self, heard: Heard) -> bool:
        reason = f"{self._me.node} does {self._capacity} at once, and it waits for its turn"
        stored = await self._records.get(heard.task)
        record = decide.on_waiting(heard, stored, self._me, reason, self._clock())
        try:
            return record is not None and bool(await self._records.claim(record, stored))
        except Fenced:
            return False

    async def _sign(self, job: Job) -> None:
        while True:
            await asyncio.sleep(self._sign_every_s)
            keep(job)

    async def _begin(self, heard: Heard, asked: Asked, job: Job, mine: bool) -> None:
        if self._closed:
            job.nak()
            return
        stored = await self._records.get(heard.task)
        if mine and stored is not None and not stored.record.ended and stored.record.holder != self._me.holder:
            log.info("task_lost", extra={"event": "task_lost", "task": heard.task, "node": self._me.node})
            return  # our signs of life were lost, and somebody else has it by now
        step = decide.on_delivery(heard, stored, self._me, self._clock())
        if isinstance(step, Doubled):
            if await self._let_go_of_copy(heard, job, step.sequence):
                return
            step = step.again
        try:
            await self._step(step, heard, asked, job, stored)
        except Fenced:
            log.info("task_lost", extra={"event": "task_lost", "task": heard.task, "node": self._me.node})
            found = await self._records.get(heard.task)
            if found is not None and found.record.sequence not in (None, heard.sequence):
                await self._let_go_of_copy(heard, job, found.record.sequence)

    async def _let_go_of_copy(self, heard: Heard, job: Job, other: int) -> bool:
        """Acknowledge a message if `other` carries its task too. False: that one is not in the stream any more."""
        if await self._queue.task_at(other) != heard.task:
            return False
        await settle(self._queue, job, heard.task, Job.ack)
        return True

    async def _step(
        self, step: Claim | Done | End | Clash, heard: Heard, asked: Asked, job: Job, stored: Stored | None
    ) -> None:
        match step:
            case Done():
                await settle(self._queue, job, heard.task, Job.ack)
            case Clash():
                await self._letters.of_clash(heard.op, heard.task, step.error, job)
                await settle(self._queue, job, heard.task, Job.ack)
            case End():
                await self._end(step, heard, job, stored)
            case Claim():
                await self._claim(step, heard, asked, job, stored)

    async def _claim(self, step: Claim, heard: Heard, asked: Asked, job: Job, stored: Stored | None) -> None:
        refusal = await self._refusal(asked, stored)
        if refusal is not None:
            others = await self._elsewhere(asked, stored)
            declined = decide.on_declined(heard, stored, self._me, refusal, self._clock(), others=others)
            await self._end(declined, heard, job, stored)
            return
        run = Run(heard, asked, job, await self._records.claim(step.record, stored))
        self._runs[heard.task] = run
        self._idle.clear()
        fields = {"task": heard.task, "op": heard.op, "model": heard.model, "attempt": step.record.attempts}
        log.info("task_running", extra={"event": "task_running", "epoch": step.record.epoch, **fields})
        try:
            await self._work(run)
        finally:
            del self._runs[heard.task]
            if not self._runs:
                self._idle.set()

    async def _refusal(self, asked: Asked, stored: Stored | None) -> Refusal | None:
        reason = unable.reason_of(stored.record, self._me.node) if stored and not asked.named else None
        return Refusal(reason) if reason is not None else await self._effects.refusal(asked)

    async def _elsewhere(self, asked: Asked, stored: Stored | None) -> bool:
        """Whether it may go on to another node."""
        record = stored.record if stored is not None and not stored.record.ended else None
        return not (asked.named or unable.full(record)) and await self._others(asked, unable.names(record))

    # -- working -----------------------------------------------------------------------------------------------------
    async def _work(self, run: Run) -> None:
        attending = asyncio.ensure_future(run.attend(self._records, self._progress_s, self._sign_every_s))
        run.work = asyncio.ensure_future(self._effects.perform(run.asked, run.progress))
        if run.why is not None:
            run.work.cancel()
        try:
            await asyncio.wait({attending, run.work}, return_when=asyncio.FIRST_COMPLETED)
            if attending.done():
                run.end("fenced")
            if self._stopping:
                run.end("stopping")
            await asyncio.wait({run.work})
        finally:
            run.work.cancel()
            attending.cancel()
            await asyncio.gather(attending, run.work, return_exceptions=True)
        if run.why == "fenced":
            self._lost(run, attending)
        else:
            others = _of_node(run.work) and await self._elsewhere(run.asked, run.stored)
            await self._end(self._outcome(run, others=others), run.heard, run.job, run.stored)

    def _lost(self, run: Run, attending: asyncio.Future[None]) -> None:
        error = None if attending.cancelled() else attending.exception()
        if error is not None and not isinstance(error, Fenced):
            raise error
        raise Fenced(f"task {run.heard.task} is another's")

    def _outcome(self, run: Run, *, others: bool) -> End | Later:
        record, now, work = run.stored.record, self._clock(), run.work
        if run.why == "stopping":
            return decide.on_stop(record, now)
        if run.why == "cancelled" or record.cancel:
            return decide.on_cancelled(record, now, "it was cancelled")
        error = work.exception() if work is not None and not work.cancelled() else asyncio.CancelledError()
        match error:
            case None:
                return decide.on_success(record, now, work.result() if work is not None else None)
            case Stopped():
                return decide.on_cancelled(record, now, str(error))
            case TaskFailed():
                return decide.on_failure(record, error.failure, self._dice(), now, others=others)
            case _:
                log.error("task_broken", exc_info=error, extra={"event": "task_broken", "task": record.task})
                text = f"a fault in the worker ({type(error).__name__}); its log says where"
                return decide.on_failure(record, Failure("internal_error", text, retryable=True), self._dice(), now)

    # -- the end -----------------------------------------------------------------------------------------------------
    async def _end(self, step: End | Later, heard: Heard, job: Job, stored: Stored | None) -> None:
        """Store what came of it, then let the message go, or give it back."""
        record = step.record.model_copy(update={"delivery": None})
        if isinstance(step, End) and record.state in ("dead", "failed"):
            await self._still(stored)
            await self._letters.of_ended(record, job)
        if stored is not None and holds(stored.record, self._of_me(stored.record)):
            await self._records.hold(record, stored)
        elif stored is None or record != stored.record:
            await self._records.claim(record, stored)
        if isinstance(step, Later):
            await settle(self._queue, job, heard.task, partial(Job.nak, delay_s=step.delay_s))
        else:
            await settle(self._queue, job, heard.task, Job.ack)
            self._say(heard, record)

    async def _still(self, stored: Stored | None) -> None:
        """No letter for what is another's by now. Raises `Fenced`."""
        found = await self._records.get(stored.record.task) if stored is not None else None
        if found is not None and stored is not None and found.record.epoch != stored.record.epoch:
            raise Fenced(f"task {stored.record.task} is another's")

    def _of_me(self, record: TaskRecord) -> TaskRecord:
        return record.model_copy(update={"node": self._me.node, "holder": self._me.holder})

    def _say(self, heard: Heard, record: TaskRecord) -> None:
        facts = {"task": record.task, "op": heard.op, "model": heard.model, "reason": record.error or record.reason}
        level = logging.INFO if record.state in ("done", "cancelled") else logging.WARNING
        seconds = round(self._clock() - record.created, 1)
        log.log(level, "task_ended", extra={"event": "task_ended", "state": record.state, "seconds": seconds, **facts})
        self._tell(f"task_{record.state}", **facts)

    async def _malformed(self, job: Job, op: str, error: PunaError) -> None:
        """It is answered in the dead-letter stream and never seen again."""
        now, text = self._clock(), letters.shown_error(error.message)
        task = "t-" + hashlib.sha256(job.subject.encode() + b"\0" + job.payload).hexdigest()[:24]
        await self._letters.of_malformed(op, task, error.code, text, job)
        if op in TASK_KINDS:
            record = TaskRecord(task=task, op=op, sequence=job.stream_sequence, created=now, since=now)
            try:
                await self._records.claim(moved(record, "dead", now, error=text), await self._records.get(task))
            except Fenced:
                log.debug("task_malformed_twice", extra={"event": "task_malformed_twice", "task": task})
        job.ack()
        log.warning("task_malformed", extra={"event": "task_malformed", "task": task, "code": error.code})


def _of_node(work: asyncio.Future[str | None]) -> bool:
    """Whether work that has ended failed for a reason of this node's own."""
    error = None if work.cancelled() else work.exception()
    return isinstance(error, TaskFailed) and error.failure.of_node
