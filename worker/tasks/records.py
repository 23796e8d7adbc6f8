"""The records of tasks in their bucket, written by compare-and-set by whoever holds the task."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from pydantic import ValidationError

from bus.errors import NoStream
from bus.kv import Bucket, Entry, WrongRevision
from bus.waits import backoff_s
from schemas.errors import BusUnavailable
from schemas.task import TaskRecord
from schemas.topology import TASK_ENDED_TTL_S
from worker.tasks.decide import Stored

log = logging.getLogger(__name__)

_READY_S: Final = 1.0


class Fenced(Exception):
    """The task is another's now, or has ended: whoever meets this writes nothing more and stops."""


class Records:
    """One bucket of `TaskRecord`s. What cannot be asked now is asked again until it can, or the caller is cancelled."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def get(self, task: str) -> Stored | None:
        """The record as the server has it now; what cannot be read is taken away, and counts as none."""
        failures = 0
        while True:
            try:
                entry = await self._bucket.get(task)
                stored = stored_of(entry)
                if entry is not None and stored is None:
                    await self._bucket.delete(task, last=entry.revision)
                return stored
            except BusUnavailable as error:
                failures += 1
                await self._outage(error, failures)

    async def all(self) -> list[Stored]:
        """Every record that can be read. Asked again until it can be."""
        failures = 0
        while True:
            try:
                entries = await self._bucket.entries()
                return [stored for entry in entries.values() if (stored := stored_of(entry)) is not None]
            except BusUnavailable as error:
                failures += 1
                await self._outage(error, failures)

    async def claim(self, record: TaskRecord, before: Stored | None) -> Stored:
        """Write over `before`, or as a new one. Raises `Fenced` if somebody else wrote meanwhile."""
        failures = 0
        while True:
            try:
                return await self._write(record, before)
            except WrongRevision:
                return _mine(await self.get(record.task), record)
            except BusUnavailable as error:  # it may be stored all the same
                failures += 1
                await self._outage(error, failures)

    async def hold(self, record: TaskRecord, mine: Stored) -> Stored:
        """Write over one that is held. A wish to cancel it that came meanwhile is kept; a bucket that lost it gets it
        again. Raises `Fenced` if it is another's now."""
        while True:
            try:
                return await self.claim(record, mine)
            except Fenced:
                found = await self.get(record.task)
                if found is None:
                    mine = Stored(mine.record, 0, mine.written_at)
                elif not holds(found.record, mine.record):
                    raise
                else:
                    mine, record = found, record.model_copy(update={"cancel": found.record.cancel})

    async def _write(self, record: TaskRecord, before: Stored | None) -> Stored:
        ttl_s = TASK_ENDED_TTL_S if record.ended else None
        value = record.model_dump_json(exclude_none=True).encode()
        if before is None or not before.revision:
            revision = await self._bucket.create(record.task, value, ttl_s=ttl_s)
        else:
            revision = await self._bucket.update(record.task, value, last=before.revision, ttl_s=ttl_s)
        return Stored(record, revision, before.written_at if before else 0.0)

    async def _outage(self, error: BusUnavailable, failures: int) -> None:
        """Until it is worth to try again. A bucket that is missing is being made anew by whoever keeps the topology."""
        if failures & (failures - 1) == 0:
            level = logging.INFO if isinstance(error, NoStream) else logging.WARNING
            log.log(level, "task_record", extra={"event": "task_record", "reason": error.message})
        await asyncio.sleep(backoff_s(failures))
        bus = self._bucket.bus
        while not bus.connected:
            try:
                await bus.ready(_READY_S)
            except BusUnavailable:
                continue


def _mine(found: Stored | None, wanted: TaskRecord) -> Stored:
    """What a write that seemed lost may have stored."""
    if found is None or found.record != wanted:
        raise Fenced(f"task {wanted.task} was written by another")
    return found


def holds(found: TaskRecord, mine: TaskRecord) -> bool:
    """Whether the record is still of this process and this epoch, and not at its end."""
    return (found.epoch, found.holder, found.node) == (mine.epoch, mine.holder, mine.node) and not found.ended


def stored_of(entry: Entry | None) -> Stored | None:
    """The record in an entry; None for nothing, and for what is none."""
    if entry is None:
        return None
    try:
        return Stored(TaskRecord.model_validate_json(entry.value), entry.revision, entry.created_at)
    except ValidationError:
        log.warning("task_record_unreadable", extra={"event": "task_record_unreadable", "key": entry.key[:128]})
        return None
