"""Downloads that somebody asked for and of which no disk tells yet: a node works on one, or all wait for something.

A task is known by its record. One that no node has taken yet has none: it is known because the gateway hears what is
published to the tasks stream, and reads what lies in it at each new session. It counts until its record is written, or
until the stream does not have it any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from gateway.rows import Rows, Value
from schemas.errors import PunaError
from schemas.subjects import Names
from schemas.task import TaskRecord, read_task

DOWNLOADS: Final = frozenset(("download", "download_override"))
UNHEARD_LIMIT: Final = 10_000
"""Tasks without a record that one view holds."""


class Underway:
    """Downloads by model. Synchronous; `now` is Unix seconds, for people."""

    def __init__(self, names: Names, now: Callable[[], float] = time.time) -> None:
        self._names = names
        self._now = now
        self._rows = Rows(TaskRecord, lambda record: record.task)
        self._open: dict[str, dict[str, TaskRecord]] = {}
        self._unheard: dict[str, TaskRecord] = {}

    @property
    def rejected_total(self) -> int:
        """Values that were no record."""
        return self._rows.rejected_total

    @property
    def unheard(self) -> frozenset[str]:
        """Tasks without a record."""
        return frozenset(self._unheard)

    def of(self, model: str) -> tuple[TaskRecord, ...]:
        """What there is for a model, the oldest first."""
        return tuple(sorted(self._open.get(model, {}).values(), key=lambda record: record.created))

    def take(self, entries: Mapping[str, Value]) -> set[str]:
        """A new state of the bucket of tasks; the models of which something changed."""
        changed: set[str] = set()
        for before, after in self._rows.take(entries):
            for old in (before, self._unheard.pop(after.task, None) if after is not None else None):
                if old is not None:
                    changed |= self._drop(old)
            if after is not None and after.op in DOWNLOADS and not after.ended:
                changed |= self._put(after)
        return changed

    def hear(self, subject: str, payload: bytes, sequence: int | None = None) -> set[str]:
        """A message was put into the stream, or lies in it under `sequence`."""
        try:
            op, node = self._names.task_parts(subject)
            task = read_task(op, payload, node) if op in DOWNLOADS else None
        except PunaError:
            return set()  # whoever takes it answers in the dead letters
        if task is None or task.id is None or len(self._unheard) >= UNHEARD_LIMIT or self._is_told(task.id, sequence):
            return set()
        now, model = self._now(), getattr(task, "model", None)
        record = TaskRecord.model_validate(
            {"task": task.id, "op": op, "model": model, "node": node, "created": now, "since": now}
        )
        self._unheard[record.task] = record
        return self._put(record)

    def compare(self, asked: Iterable[str], there: Iterable[tuple[str, bytes, int]]) -> set[str]:
        """The stream was read: it holds what is `there`, and of the tasks `asked` no other ones."""
        changed: set[str] = set()
        ids: set[str] = set()
        for subject, payload, sequence in there:
            changed |= self.hear(subject, payload, sequence)
            ids.add(self._id(subject, payload))
        for task in set(asked) - ids:
            if (record := self._unheard.pop(task, None)) is not None:
                changed |= self._drop(record)
        return changed

    def _id(self, subject: str, payload: bytes) -> str:
        try:
            op, node = self._names.task_parts(subject)
            return read_task(op, payload, node).id or ""
        except PunaError:
            return ""

    def _is_told(self, task: str, sequence: int | None) -> bool:
        """Whether the record tells of this message, or of one that has the task already."""
        known = self._rows.known.get(task)
        return task in self._unheard or (known is not None and (not known.ended or known.sequence == sequence))

    def _put(self, record: TaskRecord) -> set[str]:
        if record.model is None:
            return set()
        self._open.setdefault(record.model, {})[record.task] = record
        return {record.model}

    def _drop(self, record: TaskRecord) -> set[str]:
        if record.model is None or self._open.get(record.model, {}).pop(record.task, None) is None:
            return set()
        if not self._open[record.model]:
            del self._open[record.model]
        return {record.model}
