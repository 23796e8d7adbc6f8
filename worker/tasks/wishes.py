"""Desired state as tasks meet it: a record decides over a task, a delete of everything is a tombstone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from pydantic import ValidationError

from bus.kv import Bucket, WrongRevision
from schemas.errors import InvalidName
from schemas.model import CopyRecord, ModelRecord, Wanted
from schemas.selector import holders
from schemas.subjects import decode, encode
from worker.tasks.decide import Failure
from worker.tasks.effects import TaskFailed, WantedElsewhere

UNKNOWN_SOURCE: Final = "vendor://deleted"
"""Stands in the tombstone of a model of which nobody knows the source."""

Labels = Mapping[str, Mapping[str, str]]


class ModelWishes:
    """The buckets of models and copies. `labels`: of all nodes that count when copies are shared out; `live`: of those
    that are there now, where that is not the same. All calls raise `BusUnavailable` while the server cannot be asked.
    """

    def __init__(
        self,
        models: Bucket,
        copies: Bucket,
        node: str,
        labels: Callable[[], Awaitable[Labels]],
        *,
        live: Callable[[], Awaitable[Labels]] | None = None,
    ) -> None:
        self._models = models
        self._copies = copies
        self._node = node
        self._labels = labels
        self._live = live or labels

    async def wanted(self, model: str) -> Wanted | None:
        """As the model's record wants it on this node; None: there is no record, or it is a tombstone. Raises
        `WantedElsewhere`."""
        record, _, _ = await self._record(model)
        if record is None or record.deleting:
            return None
        if not await self._is_here(record):
            raise WantedElsewhere(f"the record of {model} does not want it on {self._node}")
        return record

    async def _is_here(self, record: ModelRecord) -> bool:
        selector, copies = record.placement.selector, record.placement.copies
        nodes = {node: labels for node, labels in (await self._labels()).items() if selector.holds(labels)}
        if copies == "all":
            return self._node in nodes
        weighed = [(node, selector.weight(labels)) for node, labels in nodes.items()]
        return self._node in holders(record.model, weighed, copies)

    async def revive(self, model: str, sent_at: float) -> None:
        """Make way for a download that was sent after the model was deleted. Raises `TaskFailed`."""
        record, revision, written_at = await self._record(model)
        if record is None or not record.deleting:
            return
        if sent_at <= written_at:
            text = f"{model} was deleted after this was sent; send it again"
            raise TaskFailed(Failure("model_deleted", text, retryable=False))
        left = await self._holding(model)
        if left:
            text = f"{model} is being deleted on {', '.join(left[:4])}"
            raise TaskFailed(Failure("model_deleting", text, retryable=True))
        try:
            await self._models.delete(encode(model), last=revision)
        except WrongRevision as error:
            raise TaskFailed(Failure("model_changed", f"the record of {model} was changed", retryable=True)) from error

    async def bury(self, model: str, *, retain: bool | None) -> None:
        """Put a tombstone. A model that is buried already stays so."""
        while True:
            record, revision, _ = await self._record(model)
            if record is not None and record.deleting:
                return
            if record is None:
                record = ModelRecord(model=model, source=await self._source(model), generation=1)
            else:
                record = record.model_copy(update={"generation": record.generation + 1})
            kept = record.retain if retain is None else retain
            value = record.model_copy(update={"deleting": True, "retain": kept}).model_dump_json().encode()
            try:
                if revision:
                    await self._models.update(encode(model), value, last=revision)
                else:
                    await self._models.create(encode(model), value)
            except WrongRevision:
                continue
            return

    async def _record(self, model: str) -> tuple[ModelRecord | None, int, float]:
        """The record, its revision and when it was written; one that cannot be read counts as none."""
        entry = await self._models.get(encode(model))
        if entry is None:
            return None, 0, 0.0
        try:
            return ModelRecord.model_validate_json(entry.value), entry.revision, entry.created_at
        except ValidationError:
            return None, entry.revision, entry.created_at

    async def _holding(self, model: str) -> list[str]:
        """Nodes with a copy, or a part of one."""
        token, live = encode(model), await self._live()
        found: list[str] = []
        for key in sorted(await self._copies.entries(under=token)):
            try:
                found.append(decode(key.removeprefix(f"{token}.")))
            except InvalidName:
                continue
        return [node for node in found if node in live]

    async def _source(self, model: str) -> str:
        """Where some node's copy came from."""
        for entry in (await self._copies.entries(under=encode(model))).values():
            try:
                record = CopyRecord.model_validate_json(entry.value)
                return ModelRecord(model=model, source=record.source or UNKNOWN_SOURCE).source
            except ValidationError:
                continue
        return UNKNOWN_SOURCE
