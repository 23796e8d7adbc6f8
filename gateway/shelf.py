"""What is on the fleet's disks, what should be there and what was asked for: an immutable view, swapped whole.

Only entries that changed are parsed, and only models of which something changed are put together anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.rows import Rows, Value
from gateway.underway import Underway
from schemas.model import CopyRecord, ModelRecord
from schemas.subjects import Names, encode
from schemas.task import TaskRecord


@dataclass(frozen=True, slots=True)
class Shelved:
    """A model's files on one node. `changed_at` is our monotonic clock when its state was last another one."""

    copy: CopyRecord
    changed_at: float


@dataclass(frozen=True, slots=True)
class Stored:
    """All that is known of one model's files. `copies` are by node, in the order of their names."""

    model: str
    record: ModelRecord | None
    copies: Mapping[str, Shelved]
    tasks: tuple[TaskRecord, ...] = ()
    """Downloads of it that have not ended, the oldest first."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """All models that are on a disk, on their way to one, or wanted, by name."""

    models: Mapping[str, Stored] = field(default_factory=lambda: MappingProxyType({}))
    whole: bool = False
    """Both buckets were read: what is not here is not there."""


class Shelver:
    """Turns the entries of the two buckets into `Shelf` views. Synchronous; owns no clock."""

    def __init__(self, names: Names) -> None:
        self.shelf = Shelf()
        self._copies = Rows(CopyRecord, lambda copy: names.copy_key(copy.model, copy.node))
        self._records = Rows(ModelRecord, lambda record: encode(record.model))
        self._by_model: dict[str, dict[str, Shelved]] = {}
        self._wanted: dict[str, ModelRecord] = {}
        self._underway = Underway(names)
        self._models: dict[str, Stored] = {}
        self._whole = [False, False]

    @property
    def rejected_total(self) -> int:
        """Values that were no record."""
        return self._copies.rejected_total + self._records.rejected_total + self._underway.rejected_total

    @property
    def unheard(self) -> frozenset[str]:
        """Downloads that no node has heard of."""
        return self._underway.unheard

    def take_copies(self, entries: Mapping[str, Value], now: float) -> Shelf:
        """A new state of the bucket of copies."""
        dirty: set[str] = set()
        for before, after in self._copies.take(entries):
            for one in (before, after):
                if one is not None:
                    dirty.add(one.model)
            self._put_copy(before, after, now)
        self._whole[0] = True
        return self._swap(dirty)

    def take_models(self, entries: Mapping[str, Value]) -> Shelf:
        """A new state of the bucket of models."""
        dirty: set[str] = set()
        for before, after in self._records.take(entries):
            if before is not None:
                self._wanted.pop(before.model, None)
                dirty.add(before.model)
            if after is not None:
                self._wanted[after.model] = after
                dirty.add(after.model)
        self._whole[1] = True
        return self._swap(dirty)

    def take_tasks(self, entries: Mapping[str, Value]) -> Shelf:
        """A new state of the bucket of tasks."""
        return self._swap(self._underway.take(entries))

    def hear_tasks(self, messages: Iterable[tuple[str, bytes]]) -> Shelf:
        """Messages that were put into the tasks stream: subject and payload."""
        dirty: set[str] = set()
        for subject, payload in messages:
            dirty |= self._underway.hear(subject, payload)
        return self._swap(dirty)

    def compare_tasks(self, asked: Iterable[str], there: Iterable[tuple[str, bytes, int]]) -> Shelf:
        """The tasks stream was read: it holds these, and of the unheard tasks `asked` no other ones."""
        return self._swap(self._underway.compare(asked, there))

    def _put_copy(self, before: CopyRecord | None, after: CopyRecord | None, now: float) -> None:
        if after is not None:
            nodes = self._by_model.setdefault(after.model, {})
            old = nodes.get(after.node)
            same = old is not None and old.copy.state == after.state
            nodes[after.node] = Shelved(after, old.changed_at if same and old else now)
        elif before is not None:
            self._by_model[before.model].pop(before.node, None)

    def _swap(self, dirty: set[str]) -> Shelf:
        whole = all(self._whole)
        if not dirty and self.shelf.whole == whole:
            return self.shelf
        models = dict(self._models)
        for model in dirty:
            copies, record, tasks = self._by_model.get(model), self._wanted.get(model), self._underway.of(model)
            if copies or record or tasks:
                models[model] = Stored(model, record, MappingProxyType(dict(sorted((copies or {}).items()))), tasks)
            else:
                self._by_model.pop(model, None)
                models.pop(model, None)
        self._models = models if models.keys() == self._models.keys() else dict(sorted(models.items()))
        self.shelf = Shelf(MappingProxyType(self._models), whole)
        return self.shelf
