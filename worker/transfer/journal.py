"""The journal of a part: which bytes of a file are there, so that a restart asks only for the others.

One line of JSON each, appended. The first says which file it is and in which run of the machine its writer lives:

    {"journal": 1, "size": 41, "digest": "sha256:…", "validator": "\\"etag\\"", "boot": "…"}
    {"w": [0, 524288]}        written: it survives the end of the process, and counts in the same run of the machine
    {"s": [[0, 524288]]}      all that was on the disk itself after an fdatasync: it counts after a power failure too

A line is appended after what it says is true. Reading ends at the first line that is not whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

from worker.transfer.intervals import Intervals

VERSION: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
LIMIT_BYTES: Final = 64 << 20
"""A longer one is not ours."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which content the bytes belong to. `validator`: what may stand in `If-Range`."""

    size: int | None
    digest: str | None
    validator: str | None = None

    def same_content(self, other: Identity) -> bool:
        """Whether bytes of the one may be completed by bytes of the other. With a digest that decides in the end;
        without one only a validator tells."""
        if (self.size, self.digest) != (other.size, other.digest):
            return False
        return self.digest is not None or other.validator in (None, self.validator)


@dataclass(frozen=True, slots=True)
class Found:
    """What an earlier writer left."""

    identity: Identity
    done: Intervals


def boot_id() -> str | None:
    """This run of the machine; None where the system does not tell."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def read(path: Path, boot: str | None) -> Found | None:
    """What a journal says, None if there is none that can be understood. Raises `OSError`."""
    try:
        if path.stat().st_size > LIMIT_BYTES:
            return None
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    lines = _lines(text)
    head = next(lines, None) or dict[str, Any]()
    if head.get("journal") != VERSION:
        return None
    with suppress(KeyError, TypeError, ValueError):
        identity = Identity(head["size"], head["digest"], head["validator"])
        return Found(identity, _done(lines, same_boot=boot is not None and head["boot"] == boot))
    return None


def _done(lines: Iterator[dict[str, Any]], *, same_boot: bool) -> Intervals:
    written, synced = Intervals(), Intervals()
    for line in lines:
        if "w" in line:
            start, end = line["w"]
            written.add(int(start), int(end))
        elif "s" in line:
            synced = Intervals((int(start), int(end)) for start, end in line["s"])
    for start, end in synced if same_boot else ():
        written.add(start, end)
    return written if same_boot else synced


def _lines(text: bytes) -> Iterator[dict[str, Any]]:
    for line in text.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except ValueError:
            return
        if not isinstance(value, dict):
            return
        yield cast(dict[str, Any], value)


class Journal:
    """Appends. Each call may come from any thread; all raise `OSError`. Made by `begin`."""

    def __init__(self, path: Path, file: int) -> None:
        self._path = path
        self._file = file

    @classmethod
    def begin(cls, path: Path, identity: Identity, done: Intervals, *, synced: bool) -> Journal:
        """Start one that says `done`, in the place of any that is there. `synced`: it is on the disk itself."""
        fresh = path.with_name(f"{path.name}.new")
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        head = {"journal": VERSION, **asdict(identity), "boot": boot_id()}
        lines = [head, *([{"s": list(done)}] if synced else [{"w": each} for each in done])]
        try:
            os.write(file, b"".join(_encoded(line) for line in lines))
            os.fsync(file)
            fresh.replace(path)
        except OSError:
            os.close(file)
            raise
        return cls(path, file)

    def written(self, start: int, end: int) -> None:
        """These bytes were given to the system."""
        os.write(self._file, _encoded({"w": [start, end]}))

    def twin(self) -> Journal:
        """The same for another thread, closed by itself."""
        return Journal(self._path, os.dup(self._file))

    def synced(self, done: Intervals) -> None:
        """These bytes are on the disk."""
        os.write(self._file, _encoded({"s": list(done)}))
        os.fdatasync(self._file)

    def close(self) -> None:
        """End. The file stays."""
        os.close(self._file)


def _encoded(line: object) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
