"""Reading files again, to know that they are what they were."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable
from typing import Final

PIECE_BYTES: Final = 4 << 20
_CLONE: Final = 0x40049409
"""Linux's FICLONE: two files share their blocks until one is written to."""


class Stopped(Exception):
    """Whoever wanted the result left."""


def sha256_of(
    file: int,
    stop: threading.Event,
    *,
    bytes_per_s: int | None = None,
    on_bytes: Callable[[int], None] | None = None,
    into: int | None = None,
) -> str:
    """The SHA-256 of an open file from its start, copied `into` another meanwhile. Raises `Stopped`, `OSError`."""
    digest, offset = hashlib.sha256(), 0
    piece = PIECE_BYTES if bytes_per_s is None else max(min(PIECE_BYTES, bytes_per_s // 4), 64 << 10)
    begun = time.monotonic()
    while data := os.pread(file, piece, offset):
        if stop.is_set():
            raise Stopped
        digest.update(data)
        if into is not None:
            _write_all(into, data)
        offset += len(data)
        if on_bytes is not None:
            on_bytes(len(data))
        if bytes_per_s is not None:
            stop.wait(max(begun + offset / bytes_per_s - time.monotonic(), 0))
    return digest.hexdigest()


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def clone(source: int, target: int) -> bool:
    """Have `target` share the blocks of `source`; False where the file system cannot."""
    try:
        fcntl.ioctl(target, _CLONE, source)
    except OSError:
        return False
    return True
