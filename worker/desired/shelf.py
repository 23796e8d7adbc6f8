"""What this node remembers of desired state, on its own disk: the records of its copies, whole, and which bucket they
came from.

So a bucket that was lost can be put back from the nodes, and a bucket that is still the same one is believed when it
says that a record is gone. One small file a record, beside the models where those may be written.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from schemas.errors import InvalidName
from schemas.model import ModelRecord
from schemas.selector import Strict
from schemas.subjects import decode, encode
from worker.desired.nodes import Labels
from worker.store.threads import Threads

log = logging.getLogger(__name__)

_BUCKET: Final = "bucket.json"
_NODES: Final = "nodes.json"
_SUFFIX: Final = ".json"


class Noted(Strict):
    """A record as it was in the bucket at a revision."""

    revision: int
    record: ModelRecord


@dataclass(frozen=True, slots=True)
class Identity:
    """Which bucket: two are the same if they were created at the same moment. `sequence`: how far it has come."""

    created: str
    sequence: int


class Shelf:
    """`records`: folder of the records; `state`: folder of what is this node's alone. All calls but `open` return once
    it is on the disk. Raises `OSError`."""

    def __init__(self, records: Path, state: Path) -> None:
        self._records = records
        self._state = state
        self._threads = Threads("shelf")
        self.noted: dict[str, Noted] = {}
        self.bucket: str | None = None
        """When the bucket that is known was created; None: none was ever seen."""
        self.nodes: dict[str, Labels] = {}

    def open(self) -> None:
        """Read what is there; blocks. What cannot be read is logged, and counts as not there."""
        for path in sorted(self._records.glob(f"*{_SUFFIX}")) if self._records.is_dir() else ():
            try:
                self.noted[decode(path.name.removesuffix(_SUFFIX))] = Noted.model_validate_json(path.read_bytes())
            except (OSError, ValidationError, InvalidName) as error:
                _unread(path, error)
        self.bucket = _text(self._load(_BUCKET).get("created"))
        nodes = self._load(_NODES)
        self.nodes = {node: labels for node, labels in nodes.items() if isinstance(labels, dict)}

    def _load(self, name: str) -> dict[str, Any]:
        path = self._state / name
        try:
            found: Any = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _unread(path, error)
            return {}
        return found if isinstance(found, dict) else {}  # type: ignore[return-value]  # checked as it is read

    async def keep(self, record: ModelRecord, revision: int) -> None:
        """Note a record."""
        noted = Noted(revision=revision, record=record)
        if self.noted.get(record.model) == noted:
            return
        path = self._records / f"{encode(record.model)}{_SUFFIX}"
        await self._threads.run(_write, path, noted.model_dump_json(exclude_defaults=True).encode())
        self.noted[record.model] = noted

    async def drop(self, model: str) -> None:
        """Forget a record."""
        if model in self.noted:
            await self._threads.run(_unlink, self._records / f"{encode(model)}{_SUFFIX}")
            self.noted.pop(model, None)

    async def remember(self, created: str) -> None:
        """This is the bucket that counts from now on."""
        if created != self.bucket:
            await self._threads.run(_write, self._state / _BUCKET, json.dumps({"created": created}).encode())
            self.bucket = created

    async def keep_nodes(self, nodes: Mapping[str, Labels]) -> None:
        """Note who is in the fleet."""
        await self._threads.run(_write, self._state / _NODES, json.dumps(nodes).encode())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _unread(path: Path, error: Exception) -> None:
    fields = {"event": "shelf_unread", "file": path.name, "error": type(error).__name__}
    log.error("shelf_unread", extra=fields)


def _write(path: Path, data: bytes) -> None:
    """That or what was there, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    fresh.rename(path)
    _sync(path.parent)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
