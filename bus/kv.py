"""Key-value buckets: written with an acknowledgement, read from the stream's leader, followed by `Follower`."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bus.connection import Bus
from bus.entry import DELETED, H_EXPECTED_REVISION, H_KV_OPERATION, Entry, check_bucket, check_key, is_removal
from bus.errors import JetStreamError, NoStream, WrongRevision
from bus.follower import Follower
from bus.message import parse_headers
from bus.topology import STREAM_NOT_FOUND

__all__ = ["Bucket", "Entry", "Follower", "WrongRevision"]

_NO_MESSAGE: Final = 10037
_CREATE_TRIES: Final = 3
SNAPSHOT_TIMEOUT_S: Final = 10.0


class Bucket:
    """One bucket that `ensure` has made. All calls raise `NoStream` while it does not exist, `BusUnavailable` while
    the server cannot be asked, `InvalidName` for a key that is not encoded.

    A write that ends in `BusUnavailable` may have been stored all the same.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self.bus: Final = bus
        self.name: Final = check_bucket(name)
        self.stream: Final = f"KV_{name}"
        self.prefix: Final = f"$KV.{name}."

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Write, whatever was there. Returns the revision. `ttl_s` is rounded up to whole seconds."""
        return await self._write(key, value, {}, ttl_s)

    async def update(self, key: str, value: bytes, *, last: int, ttl_s: float | None = None) -> int:
        """Write if the key's newest revision is `last` (0: there never was one). Raises `WrongRevision`."""
        return await self._write(key, value, {H_EXPECTED_REVISION: str(last)}, ttl_s)

    async def create(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        """Write if there is no such key; one that was deleted or has expired does not count. Raises `WrongRevision`."""
        last = 0
        for tries_left in reversed(range(_CREATE_TRIES)):
            try:
                return await self.update(key, value, last=last, ttl_s=ttl_s)
            except WrongRevision:
                found, last = await self._newest(key)
                if found is not None or not tries_left:
                    raise
        raise AssertionError("unreachable: the last try returns or raises")

    async def get(self, key: str) -> Entry | None:
        """The newest value; None if there is none, or it was deleted or has expired."""
        return (await self._newest(key))[0]

    async def delete(self, key: str, *, last: int | None = None) -> None:
        """Leave a marker. With `last`, only if that is the newest revision; else raises `WrongRevision`."""
        expected = {} if last is None else {H_EXPECTED_REVISION: str(last)}
        await self._write(key, b"", {H_KV_OPERATION: DELETED} | expected, None)

    async def entries(self, *, under: str = "") -> Mapping[str, Entry]:
        """All that is there now; with `under`, what has keys that begin with it and a dot. Reads the values too."""
        found: list[Mapping[str, Entry]] = []
        follower = Follower(self, found.append, under=under)
        try:
            await follower.start(timeout_s=SNAPSHOT_TIMEOUT_S)
        finally:
            await follower.stop()
        return found[-1]

    async def keys(self) -> list[str]:
        """The keys that are there now, sorted."""
        return sorted(await self.entries())

    async def _write(self, key: str, value: bytes, headers: dict[str, str], ttl_s: float | None) -> int:
        subject = self.prefix + check_key(key)
        return (await self.bus.js_publish(subject, value, headers=headers or None, ttl_s=ttl_s)).sequence

    async def _newest(self, key: str) -> tuple[Entry | None, int]:
        """The entry, or None for a marker or nothing; and the newest revision, 0 for nothing."""
        # from the leader: a direct get may be answered by a replica that is behind, and lose every compare-and-set
        body = {"last_by_subj": self.prefix + check_key(key)}
        try:
            stored = (await self.bus.js_api(f"STREAM.MSG.GET.{self.stream}", body))["message"]
        except JetStreamError as error:
            if error.err_code == _NO_MESSAGE:
                return None, 0
            if error.err_code == STREAM_NOT_FOUND:
                raise NoStream(f"bucket {self.name} does not exist") from error
            raise
        return _entry(key, stored)


def _entry(key: str, stored: Mapping[str, Any]) -> tuple[Entry | None, int]:
    revision = int(stored["seq"])
    if is_removal(parse_headers(base64.b64decode(stored.get("hdrs") or ""))):
        return None, revision
    created_at = datetime.fromisoformat(stored["time"]).timestamp()
    return Entry(key, base64.b64decode(stored.get("data") or ""), revision, created_at), revision
