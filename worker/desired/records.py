"""The bucket of records, as this node reads and mends it. What people want they write themselves; a node writes only
what was lost, and takes tombstones away."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from bus.errors import NoStream
from bus.kv import Bucket, Entry, WrongRevision
from bus.topology import stream_info
from schemas.errors import InvalidName
from schemas.model import CopyRecord, ModelRecord
from schemas.subjects import decode, encode
from worker.desired.shelf import Identity, Noted

log = logging.getLogger(__name__)

_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as the bucket has it. `record`: None if it cannot be read."""

    record: ModelRecord | None
    revision: int
    created_at: float


def read(entry: Entry) -> Seen | None:
    """None for a key that no model can have."""
    try:
        model = decode(entry.key)
    except InvalidName:
        return None
    try:
        record = ModelRecord.model_validate_json(entry.value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        text = f"{'.'.join(str(part) for part in first['loc'])[:80]}: {first['msg']}"
        log.warning("record_unreadable", extra={"event": "record_unreadable", "model": model, "error": text})
        return Seen(None, entry.revision, entry.created_at)
    if record.model != model:
        text = f"the record under {model} is one of {record.model}"
        log.warning("record_unreadable", extra={"event": "record_unreadable", "model": model, "error": text})
        return Seen(None, entry.revision, entry.created_at)
    return Seen(record, entry.revision, entry.created_at)


def read_all(entries: Mapping[str, Entry], before: Mapping[str, Seen]) -> dict[str, Seen]:
    """By model; what has not changed is not read again."""
    found: dict[str, Seen] = {}
    for key, entry in entries.items():
        try:
            known = before.get(decode(key))
        except InvalidName:
            continue
        seen = known if known is not None and known.revision == entry.revision else read(entry)
        if seen is not None:
            found[decode(key)] = seen
    return found


class Models:
    """All calls raise `PunaError` while the server cannot be asked."""

    def __init__(self, models: Bucket, copies: Bucket) -> None:
        self._models = models
        self._copies = copies

    async def identity(self) -> Identity:
        """Which bucket this is. Raises `NoStream` too."""
        info = await stream_info(self._models.bus, self._models.stream)
        if info is None:
            raise NoStream(f"bucket {self._models.name} does not exist")
        return Identity(str(info["created"]), int(info["state"]["last_seq"]))

    async def missing(self, models: Iterable[str]) -> set[str]:
        """Those of which the bucket itself says that they have no record."""
        return {model for model in models if await self._models.get(encode(model)) is None}

    async def put_back(self, noted: Noted) -> bool:
        """Have the record in a bucket that was lost, unless there is one that somebody has written since, or that is
        as new. Returns whether it was put."""
        record = noted.record.model_copy(update={"restored": True})
        key, value = encode(record.model), record.model_dump_json(exclude_defaults=True).encode()
        for _ in range(_TRIES):
            entry = await self._models.get(key)
            try:
                if entry is None:
                    await self._models.create(key, value)
                    return True
                seen = read(entry)
                there = seen.record if seen is not None else None
                if there is None or not there.restored or there.generation >= record.generation:
                    return False
                await self._models.update(key, value, last=entry.revision)
            except WrongRevision:
                continue
            return True
        return False

    async def take_away(self, model: str, revision: int) -> None:
        """Remove a tombstone, if it is still the one of this revision."""
        try:
            await self._models.delete(encode(model), last=revision)
        except WrongRevision:
            log.debug("tombstone_changed", extra={"event": "tombstone_changed", "model": model})

    async def copies_of(self, model: str) -> list[CopyRecord]:
        """What nodes tell of their copies; one that cannot be read is left out."""
        found: list[CopyRecord] = []
        for entry in (await self._copies.entries(under=encode(model))).values():
            with suppress(ValidationError):
                found.append(CopyRecord.model_validate_json(entry.value))
        return found

    async def holding(self, model: str) -> set[str]:
        """Nodes that tell of a copy, or of a part of one."""
        token, found = encode(model), set[str]()
        for key in await self._copies.entries(under=token):
            try:
                found.add(decode(key.removeprefix(f"{token}.")))
            except InvalidName:
                continue
        return found
