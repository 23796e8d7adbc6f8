"""What the journal of a part says is there, read on from where it was read last: parts grow, and are asked for often.

The format is that of `worker.transfer.journal`, which is read whole where a journal is new.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Final

from worker.transfer.intervals import Intervals
from worker.transfer.journal import LIMIT_BYTES, VERSION, boot_id

KNOWN_LIMIT: Final = 64
"""Journals that are remembered."""


@dataclass(slots=True)
class Known:
    """One journal, as far as it was read."""

    inode: tuple[int, int]
    size_bytes: int | None = None
    same_boot: bool = False
    at: int = 0
    done: Intervals = field(default_factory=Intervals)
    synced: Intervals = field(default_factory=Intervals)


class Growth:
    """All journals of a store. Calls block; one at a time."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    def read(self, key: str, journal: int) -> Known | None:
        """What it says now, by its descriptor; None for what is no journal. Raises `OSError`."""
        told = os.fstat(journal)
        inode = (told.st_dev, told.st_ino)
        known = self._known.pop(key, None)
        if known is None or known.inode != inode or known.at > told.st_size:
            known = Known(inode)
        if told.st_size - known.at > LIMIT_BYTES:
            return None
        text = os.pread(journal, told.st_size - known.at, known.at)
        whole = text.rfind(b"\n") + 1
        for line in text[:whole].splitlines():
            if not _take(known, line):
                return None
        known.at += whole
        self._known[key] = known
        while len(self._known) > KNOWN_LIMIT:
            del self._known[next(iter(self._known))]
        return known if known.at else None


def _take(known: Known, line: bytes) -> bool:
    try:
        told: Any = json.loads(line)
        if known.at == 0 and known.size_bytes is None and "journal" in told:
            known.size_bytes = told["size"]
            known.same_boot = told["boot"] is not None and told["boot"] == boot_id()
            return told["journal"] == VERSION and known.size_bytes is not None
        if "w" in told and known.same_boot:
            known.done.add(int(told["w"][0]), int(told["w"][1]))
        elif "s" in told:
            known.done = known.done if known.same_boot else Intervals()
            for start, end in told["s"]:
                known.done.add(int(start), int(end))
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    return True
