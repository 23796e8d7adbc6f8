"""What this node has of files that others may ask for: blobs, and parts as far as their journals say.

Calls block: they are for threads. A file that goes while it is read is read to the end all the same, or is simply not
there any more.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.peer import KEY
from worker.peers import chunks
from worker.peers.growth import Growth
from worker.store import layout
from worker.store.disk import Disk, Place

KNOWN_LIMIT: Final = 10_000
SUMS_LIMIT: Final = 16
"""Files whose sums are remembered."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is there of one file."""

    disk: Disk
    place: Place
    size_bytes: int
    have: int
    """Chunks, as the bits of a number."""
    complete: bool
    sha256: str | None = None


class Holdings:
    """`roots` are the folders of the store; parts are in the first."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._disks = tuple(Disk(root) for root in roots)
        self._lock = threading.Lock()
        self._growth = Growth()
        self._content: dict[str, str] = {}
        self._sums: dict[str, tuple[tuple[int, int], dict[int, str]]] = {}

    def learn(self, key: str, sha256: str) -> None:
        """The content behind a key that does not name it."""
        with self._lock:
            self._content.pop(key, None)
            self._content[key] = sha256
            while len(self._content) > KNOWN_LIMIT:
                del self._content[next(iter(self._content))]

    def look(self, key: str) -> Held | None:
        """What is there now; None if nothing is, or the disk refuses."""
        if not KEY.fullmatch(key):
            return None
        with suppress(OSError):
            # a part may become a blob between two looks
            return self._blob(key) or self._part(key) or self._blob(key)
        return None

    def read(self, held: Held, start: int, end: int) -> bytes | None:
        """These bytes; None where they are not there any more."""
        found = self._read(held, start, end)
        return found[1] if found is not None else None

    def chunk(self, key: str, held: Held, number: int) -> tuple[bytes, str] | None:
        """A chunk and its SHA-256, which is computed once; None where it is not there any more."""
        found = self._read(held, *chunks.span(number, held.size_bytes))
        if found is None:
            return None
        known = self.sums(key, found[0])
        sha256 = known[number] = known.get(number) or hashlib.sha256(found[1]).hexdigest()
        return found[1], sha256

    def chunk_sum(self, key: str, held: Held, number: int) -> str | None:
        """The SHA-256 of a chunk; None where it is not there any more."""
        inode = held.disk.identity(held.place)
        known = self.sums(key, inode).get(number) if inode is not None else None
        if known is None and (found := self.chunk(key, held, number)) is not None:
            known = found[1]
        return known

    def _read(self, held: Held, start: int, end: int) -> tuple[tuple[int, int], bytes] | None:
        """With what tells the file from others: device and number."""
        try:
            file = held.disk.open(held.place)
        except OSError:
            return None
        try:
            told, data = os.fstat(file), os.pread(file, end - start, start)
            return ((told.st_dev, told.st_ino), data) if len(data) == end - start else None
        except OSError:
            return None
        finally:
            os.close(file)

    def sums(self, key: str, inode: tuple[int, int]) -> dict[int, str]:
        """The SHA-256 of the chunks of a file, as far as they are known: may be added to."""
        with self._lock:
            found, known = self._sums.pop(key, (inode, dict[int, str]()))
            known = known if found == inode else {}
            self._sums[key] = (inode, known)
            while len(self._sums) > SUMS_LIMIT:
                del self._sums[next(iter(self._sums))]
            return known

    def forget(self, key: str) -> None:
        """The content of a part begins anew."""
        with self._lock:
            self._sums.pop(key, None)

    def _blob(self, key: str) -> Held | None:
        sha256 = self._sha256(key)
        if sha256 is None:
            return None
        for disk in self._disks:
            found = disk.look(layout.blob(sha256))
            if found is not None and found.kind == "file":
                size = found.size_bytes
                return Held(disk, layout.blob(sha256), size, chunks.all_of(size), complete=True, sha256=sha256)
        return None

    def _sha256(self, key: str) -> str | None:
        kind, _, digits = key.partition("-")
        if kind == "sha256":
            return digits
        with self._lock:
            known = self._content.get(key)
        if known is None:
            with suppress(OSError):
                known = layout.blob_of(self._disks[0].read((*layout.PARTIAL, key, "placed")).decode("ascii", "replace"))
        return known

    def _part(self, key: str) -> Held | None:
        disk, place = self._disks[0], (*layout.PARTIAL, key)
        data = disk.look((*place, "data"))
        if data is None or data.kind != "file":
            return None
        journal = disk.open((*place, "journal"))
        try:
            with self._lock:
                known = self._growth.read(key, journal)
                if known is None or known.size_bytes is None:
                    return None
                size, done = known.size_bytes, known.done.cut(data.size_bytes)
        finally:
            os.close(journal)
        have = chunks.within(done, size)
        return Held(disk, (*place, "data"), size, have, complete=False) if have else None
