"""The parsed values of a bucket: only entries that changed are parsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from schemas.errors import InvalidName

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


class Rows(Generic[R]):
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
