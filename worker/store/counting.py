"""What counts as having come: only what was asked for now, not what an earlier transfer has left on the disk."""

from __future__ import annotations

from collections.abc import Callable

from worker.sources import Digest, RemoteFile
from worker.store.progress import Meter
from worker.store.sharing import Hears
from worker.transfer.disk import remains
from worker.transfer.part import Part


class Counted:
    """Counts for one model: how far it is, and what of the room that was promised to it is taken."""

    def __init__(self, meter: Meter, spent: Callable[[int], None]) -> None:
        self._meter = meter
        self._spent = spent

    def there(self, bytes_: int) -> None:
        """So many need not come."""
        self._meter.there(bytes_)

    def came(self, bytes_: int) -> None:
        """So many came; less than 0 when some did not hold."""
        self._meter.came(bytes_)
        self._spent(bytes_)


class Came:
    """Hears of a transfer what is there: first what an earlier one has left, which did not come now."""

    def __init__(self, hears: Hears, watch: Callable[[int], None], left_bytes: int) -> None:
        self._hears = hears
        self._watch = watch
        self._left_bytes = left_bytes

    def __call__(self, bytes_: int) -> None:
        before = min(max(bytes_, 0), self._left_bytes)
        self._left_bytes = 0 if bytes_ < 0 else self._left_bytes - before
        if before:
            self._hears.there(before)
        if bytes_ != before:
            self._watch(bytes_ - before)
            self._hears.came(bytes_ - before)


async def left_bytes(file: RemoteFile, part: Part) -> int:
    """Bytes of the file that an earlier transfer has left."""
    found = await remains(part)
    if found is None or (found.identity.size, found.identity.digest) != (file.size_bytes, _told(file.digest)):
        return 0
    return found.done.size


def _told(digest: Digest | None) -> str | None:
    return str(digest) if digest is not None else None
