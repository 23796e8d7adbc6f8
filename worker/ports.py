"""Leases of ports for engines, so that engines of several workers on one host never get the same one.

A lease is a locked file in a folder that all workers of this user share: the kernel drops the lock when its worker
dies, however it dies. The file's time is when the port was last in use; for a while after that nobody takes it.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from schemas.errors import Unavailable


def shared_folder() -> Path:
    """Where the leases of this user's workers are. Made on first use, readable by nobody else."""
    folder = Path(tempfile.gettempdir()) / f"puna-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to somebody else; remove it or set TMPDIR")
    return folder


@dataclass(slots=True)
class PortLease:
    """One port that is ours until `release`, or until this process ends."""

    port: int
    _file: int

    def release(self) -> None:
        """Give the port back; its rest begins. May be called twice."""
        if self._file >= 0:
            os.utime(self._file)
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> PortLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class PortPool:
    """Leases ports from `first` to `last`, both included. `cooldown_s`: rest after use."""

    def __init__(self, first: int = 30000, last: int = 31000, *, cooldown_s: float = 60.0, folder: Path | None = None):
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"ports {first}-{last}: give the first and the last, between 1 and 65535")
        self.first, self.last = first, last
        self._cooldown_s = cooldown_s
        self._folder = folder

    def lease(self) -> PortLease:
        """A port that nobody listens on and no other worker holds. Raises `Unavailable` when there is none."""
        for port in self._candidates():
            if (held := self._try(port)) is not None:
                return held
        raise Unavailable(
            f"no free port for an engine in {self.first}-{self.last}: all are in use or resting {self._cooldown_s:g} s "
            "after use; widen port_range"
        )

    def reclaim(self, port: int) -> PortLease | None:
        """The lease of a port that an engine of an earlier life still has; None if another worker holds it."""
        file = os.open(self._path(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return PortLease(port, file)

    def _path(self, port: int) -> Path:
        self._folder = self._folder or shared_folder()
        return self._folder / f"{port}.lease"

    def _candidates(self) -> Iterator[int]:
        """Every port once, from a random start: workers that start together do not queue up for the same one."""
        count = self.last - self.first + 1
        start = random.randrange(count)  # noqa: S311 - spreads load, guards nothing
        return (self.first + (start + step) % count for step in range(count))

    def _try(self, port: int) -> PortLease | None:
        path = self._path(port)
        is_new = not path.exists()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rested = is_new or time.time() - os.fstat(file).st_mtime >= self._cooldown_s
            if rested and _bindable(port):
                os.utime(file)
                return PortLease(port, file)
        except BlockingIOError:
            pass
        os.close(file)
        return None


def _bindable(port: int) -> bool:
    """Whether a server could listen there now. The lease's lock covers the moment until the engine does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False
