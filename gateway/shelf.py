"""What is on the fleet's disks, and what should be there: an immutable view of two buckets, swapped whole.

Only entries that changed are parsed, and only models of which something changed are put together anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import InvalidName
from schemas.model import CopyRecord, ModelRecord
from schemas.subjects import Names, encode

ENTRIES_LIMIT: Final = 500_000
"""Values of one bucket that one view holds."""

R = TypeVar("R", bound=BaseModel)


class Value(Protocol):
    """What is read of an entry of a bucket."""

    @property
    def value(self) -> bytes:
        """The record as JSON."""
        ...

    @property
    def revision(self) -> int:
        """The bucket's own number of the write."""
        ...


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


@dataclass(frozen=True, slots=True)
class Shelf:
    """All models that are on a disk, on their way to one, or wanted, by name."""

    models: Mapping[str, Stored] = field(default_factory=lambda: MappingProxyType({}))
    whole: bool = False
    """Both buckets were read: what is not here is not there."""


class _Rows(Generic[R]):
    """The parsed values of one bucket, by key."""

    def __init__(self, kind: type[R], key_of: Callable[[R], str]) -> None:
        self.known: dict[str, R] = {}
        self.rejected_total = 0
        self._kind = kind
        self._key_of = key_of
        self._seen: dict[str, Value] = {}

    def take(self, entries: Mapping[str, Value]) -> list[tuple[R | None, R | None]]:
        """What was, and what is, of each key that changed."""
        changed: list[tuple[R | None, R | None]] = []
        for key in [key for key in self._seen if key not in entries]:
            del self._seen[key]
            changed.append((self.known.pop(key, None), None))
        for key, entry in entries.items():
            old = self._seen.get(key)
            if old is entry or (old is not None and old.revision == entry.revision and old.value == entry.value):
                continue
            if old is None and len(self._seen) >= ENTRIES_LIMIT:
                continue
            self._seen[key] = entry
            before, after = self.known.pop(key, None), self._parsed(key, entry)
            if after is not None:
                self.known[key] = after
            changed.append((before, after))
        return changed

    def _parsed(self, key: str, entry: Value) -> R | None:
        """None, and counted, for what is no record, or one under a key that is not its own."""
        try:
            found = self._kind.model_validate_json(entry.value)
            own_key = self._key_of(found)
        except (ValidationError, InvalidName):
            found, own_key = None, key
        if found is None or own_key != key:
            self.rejected_total += 1
            return None
        return found


class Shelver:
    """Turns the entries of the two buckets into `Shelf` views. Synchronous; owns no clock."""

    def __init__(self, names: Names) -> None:
        self.shelf = Shelf()
        self._copies = _Rows(CopyRecord, lambda copy: names.copy_key(copy.model, copy.node))
        self._records = _Rows(ModelRecord, lambda record: encode(record.model))
        self._by_model: dict[str, dict[str, Shelved]] = {}
        self._wanted: dict[str, ModelRecord] = {}
        self._models: dict[str, Stored] = {}
        self._whole = [False, False]

    @property
    def rejected_total(self) -> int:
        """Values that were no record."""
        return self._copies.rejected_total + self._records.rejected_total

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
            copies, record = self._by_model.get(model), self._wanted.get(model)
            if copies or record:
                models[model] = Stored(model, record, MappingProxyType(dict(sorted((copies or {}).items()))))
            else:
                self._by_model.pop(model, None)
                models.pop(model, None)
        self._models = models if models.keys() == self._models.keys() else dict(sorted(models.items()))
        self.shelf = Shelf(MappingProxyType(self._models), whole)
        return self.shelf
