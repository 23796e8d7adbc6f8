"""This node's part of the copies bucket: one key for each model that it has, or is about to have."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from bus.connection import Bus
from bus.errors import NoStream
from bus.kv import Bucket
from bus.topology import waiting
from bus.waits import backoff_s
from schemas.errors import BodyTooLarge, PunaError
from schemas.model import CopyRecord
from schemas.subjects import encode

log = logging.getLogger(__name__)
T = TypeVar("T")

RESYNC_S: Final = 60.0
"""How often the bucket is looked at for what is missing or too much, whatever was heard; with up to a quarter more or
less, so that a fleet is not in step."""
SHORT_CHARS: Final = 1000
"""What is left of the texts of a record that is too large for a message."""
Counted = Callable[[str, str, float], None]
"""Told of each call to the bucket: `put`, `delete`, `get` or `list`, then `success` or the error's code, and how long
it took."""


def _uncounted(_operation: str, _result: str, _seconds: float) -> None: ...


async def _unrepaired() -> None: ...


class CopyNews:
    """Writes the newest record of each model, one after the other; what could not be written is written again.

    `tell` is a plain call, to be given to `worker.copies.Copies`; `again` makes that tell everything once more.
    `repair` makes a bucket that is missing.
    """

    def __init__(
        self,
        bus: Bus,
        node: str,
        on_change: Callable[[], None],
        *,
        repair: Callable[[], Awaitable[None]] = _unrepaired,
        counted: Counted = _uncounted,
        resync_s: float = RESYNC_S,
    ) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, bus.names.bucket_copies)
        self._node = node
        self._on_change = on_change
        self._repair = repair
        self._counted = counted
        self._resync_s = resync_s
        self._waiting: dict[str, CopyRecord | None] = {}
        self._here: dict[str, CopyRecord] = {}
        self._away: set[str] = set()
        self._stirred = asyncio.Event()
        self._anew = self._look = True

    def tell(self, model: str, record: CopyRecord | None) -> None:
        """What is known of a model now; None: there is no copy any more."""
        self._waiting[model] = record
        if record is None:
            self._here.pop(model, None)
        else:
            self._here[model] = record
        self._stirred.set()
        self._on_change()

    async def session(self) -> None:
        """A new session with the server: the bucket may have been lost, or be of another day."""
        self._anew = True
        self._stirred.set()

    async def run(self, again: Callable[[], None]) -> None:
        """Write until cancelled."""
        failures = 0
        while True:
            try:
                await self._settle(again)
                failures = 0
                await self._until_stirred()
            except PunaError as error:
                failures += 1
                log.info("copies_unsent", extra={"event": "copies_unsent", "reason": error.message})
                if isinstance(error, NoStream):
                    self._anew = True
                    await self._mended()
                await asyncio.sleep(backoff_s(failures))

    async def _mended(self) -> None:
        try:
            await self._repair()
        except PunaError as error:
            log.warning("copies_bucket_missing", extra={"event": "copies_bucket_missing", "reason": error.message})

    async def _until_stirred(self) -> None:
        try:
            async with asyncio.timeout(self._resync_s * random.uniform(0.75, 1.25)):  # noqa: S311  no secret
                await self._stirred.wait()
        except TimeoutError:
            self._look = True

    async def _settle(self, again: Callable[[], None]) -> None:
        self._stirred.clear()
        if self._anew:
            self._away.clear()
            again()
        if self._anew or self._look:
            await self._compare()
            self._anew = self._look = False
        while self._waiting:
            model = next(iter(self._waiting))
            await self._write(model, self._waiting[model])

    async def _write(self, model: str, record: CopyRecord | None) -> None:
        key = self._key(model)
        if record is None:
            await self._ask("delete", self._bucket.delete(key))
            self._away.add(key)
        else:
            self._away.discard(key)
            await self._put(key, record)
        if self._waiting.get(model) is record:
            self._waiting.pop(model, None)

    async def _put(self, key: str, record: CopyRecord) -> None:
        try:
            await self._ask("put", self._bucket.put(key, _bytes_of(record)))
            fields = {"event": "kv_update", "bucket": self._bucket.name, "model": record.model, "state": record.state}
            log.debug("kv update (configmap update)", extra=fields)
        except BodyTooLarge:
            log.warning("copy_record_cut", extra={"event": "copy_record_cut", "model": record.model})
            await self._ask("put", self._bucket.put(key, _bytes_of(_short(record))))

    async def _compare(self) -> None:
        """What is told of this node and is not so, or is so and not told."""
        prefix = self._bucket.prefix
        pattern = f"{prefix}*.{encode(self._node)}"
        subjects = await self._ask("list", waiting(self._bus, self._bucket.stream, pattern))
        told = {subject.removeprefix(prefix) for subject in subjects} - self._away
        here = {self._key(model): model for model in self._here}
        for key in sorted(told - here.keys()):
            if await self._ask("get", self._bucket.get(key)) is not None:
                await self._ask("delete", self._bucket.delete(key))
            self._away.add(key)
        for key in here.keys() - told:
            self._waiting.setdefault(here[key], self._here[here[key]])

    def _key(self, model: str) -> str:
        return self._bus.names.copy_key(model, self._node)

    async def _ask(self, operation: str, asking: Coroutine[Any, Any, T]) -> T:
        begun_at, result = time.monotonic(), "success"
        try:
            return await asking
        except PunaError as error:
            result = error.code
            raise
        finally:
            self._counted(operation, result, time.monotonic() - begun_at)


def _bytes_of(record: CopyRecord) -> bytes:
    return record.model_dump_json(exclude_none=True).encode()


def _short(record: CopyRecord) -> CopyRecord:
    """Without what a source or a file could make as long as it likes."""
    cut = {name: text[:SHORT_CHARS] for name in ("reason", "revision", "source") if (text := getattr(record, name))}
    return record.model_copy(update=cut | {"config": {}})
