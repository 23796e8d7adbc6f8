"""Ending a task wherever it is: in the queue, in a node's hands, or waiting for its next try."""

from __future__ import annotations

import base64
import time
from typing import Any, Final

from bus.connection import Bus
from bus.errors import JetStreamError
from bus.job import Job, parse_delivery
from bus.topology import STREAM_NOT_FOUND, delete_message
from schemas.errors import PunaError
from schemas.task import TaskOp, TaskRecord, moved, read_task
from worker.tasks.decide import Failure, Stored
from worker.tasks.effects import TaskFailed
from worker.tasks.records import Fenced, Records

_NOTHING_THERE: Final = (10037, STREAM_NOT_FOUND)
_LOOKED_AT_LIMIT: Final = 10_000
"""Messages of the queue that are read to find one of which no node has heard yet."""


class Queue:
    """The tasks stream as something to look into."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._stream = bus.names.stream_tasks

    async def task_at(self, sequence: int) -> str | None:
        """The id of the task in one message; None if there is no such message, or it holds none."""
        stored = await self._read({"seq": sequence})
        return None if stored is None else self._task_of(stored)[0]

    async def find(self, task: str) -> tuple[int, TaskOp, str | None] | None:
        """The message of a task: sequence, operation, model. None if it is not in the queue."""
        sequence = 1
        for _ in range(_LOOKED_AT_LIMIT):
            stored = await self._read({"seq": sequence, "next_by_subj": f"{self._bus.names.prefix}.task.>"})
            if stored is None:
                return None
            found, op, model = self._task_of(stored)
            if found == task and op is not None:
                return int(stored["seq"]), op, model
            sequence = int(stored["seq"]) + 1
        return None

    async def job_of(self, record: TaskRecord) -> Job | None:
        """The message of a task whose delivery is in its record, as if it had just come; None if it is not there any
        more, or the record does not tell of one."""
        delivery = parse_delivery(record.delivery or "")
        if delivery is None or (delivery.stream, delivery.stream_sequence) != (self._stream, record.sequence):
            return None
        stored = await self._read({"seq": delivery.stream_sequence})
        if stored is None or self._task_of(stored)[0] != record.task:
            return None
        return Job(
            subject=str(stored["subject"]),
            payload=base64.b64decode(stored.get("data") or ""),
            headers={},
            stream_sequence=delivery.stream_sequence,
            delivered=delivery.delivered,
            pending=delivery.pending,
            published_at=delivery.published_at,
            reply=record.delivery or "",
            valid=lambda: True,
            acknowledge=self._bus.publish,
        )

    async def drop(self, sequence: int) -> bool:
        """Take a message out. False if it was not there."""
        return await delete_message(self._bus, self._stream, sequence)

    def _task_of(self, stored: dict[str, Any]) -> tuple[str | None, TaskOp | None, str | None]:
        try:
            op, node = self._bus.names.task_parts(str(stored["subject"]))
            task = read_task(op, base64.b64decode(stored.get("data") or ""), node)
        except PunaError:
            return None, None, None
        return task.id, op, getattr(task, "model", None)  # pyright: ignore[reportReturnType]  read_task checked the op

    async def _read(self, body: dict[str, Any]) -> dict[str, Any] | None:
        try:
            return (await self._bus.js_api(f"STREAM.MSG.GET.{self._stream}", body))["message"]
        except JetStreamError as error:
            if error.err_code in _NOTHING_THERE:
                return None
            raise


class Canceller:
    """Ends tasks by their records. Never waits for whoever works on one: it sees the record change."""

    def __init__(self, records: Records, queue: Queue) -> None:
        self._records = records
        self._queue = queue

    async def cancel(self, task: str) -> str:
        """End it; what that came to. Raises `TaskFailed` for one that nobody knows."""
        while True:
            stored = await self._records.get(task)
            try:
                return await (self._unheard(task) if stored is None else self._known(stored))
            except Fenced:
                continue  # it went on meanwhile; look again

    async def _known(self, stored: Stored) -> str:
        record = stored.record
        if record.ended:
            return f"it had ended before: {record.state}"
        if record.state == "running":
            if not record.cancel:
                await self._records.claim(record.model_copy(update={"cancel": True}), stored)
            return f"{record.node} was told to stop"
        ended = moved(record, "cancelled", time.time(), reason="it was cancelled", next_retry_at=None)
        await self._records.claim(ended, stored)
        if record.sequence is not None and await self._queue.task_at(record.sequence) == record.task:
            await self._queue.drop(record.sequence)
        return f"it was {record.state}"

    async def _unheard(self, task: str) -> str:
        found = await self._queue.find(task)
        if found is None:
            raise TaskFailed(Failure("not_found", f"there is no task {task}", retryable=False))
        sequence, op, model = found
        now = time.time()
        record = TaskRecord(task=task, op=op, model=model, sequence=sequence, created=now, since=now)
        await self._records.claim(moved(record, "cancelled", now, reason="it was cancelled"), None)
        await self._queue.drop(sequence)
        return "it was queued"
