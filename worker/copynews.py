"""This node's part of the copies bucket: one key for each model that it has, or is about to have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from bus.connection import Bus
from bus.kv import Bucket
from bus.waits import backoff_s
from schemas.errors import PunaError
from schemas.model import CopyRecord
from schemas.subjects import encode

log = logging.getLogger(__name__)

RESYNC_S: Final = 300.0
"""How often the bucket is compared with what is here, whatever was heard."""


class CopyNews:
    """Writes the newest record of each model, one after the other; what could not be written is written again.

    `tell` is a plain call, to be given to `worker.copies.Copies`; `again` makes that tell everything once more.
    """

    def __init__(self, bus: Bus, node: str, on_change: Callable[[], None]) -> None:
        self._bus = bus
        self._bucket = Bucket(bus, bus.names.bucket_copies)
        self._node = node
        self._on_change = on_change
        self._waiting: dict[str, CopyRecord | None] = {}
        self._here: set[str] = set()
        self._stirred = asyncio.Event()
        self._compare = True

    def tell(self, model: str, record: CopyRecord | None) -> None:
        """What is known of a model now; None: there is no copy any more."""
        self._waiting[model] = record
        if record is None:
            self._here.discard(model)
        else:
            self._here.add(model)
        self._stirred.set()
        self._on_change()

    async def session(self) -> None:
        """A new session with the server: the bucket may have been lost."""
        self._compare = True
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
                await asyncio.sleep(backoff_s(failures))

    async def _until_stirred(self) -> None:
        try:
            async with asyncio.timeout(RESYNC_S):
                await self._stirred.wait()
        except TimeoutError:
            self._compare = True

    async def _settle(self, again: Callable[[], None]) -> None:
        self._stirred.clear()
        if self._compare:
            await self._take_away_unknown()
            again()
            self._compare = False
        while self._waiting:
            model = next(iter(self._waiting))
            await self._write(model, self._waiting[model])

    async def _write(self, model: str, record: CopyRecord | None) -> None:
        key = self._bus.names.copy_key(model, self._node)
        if record is None:
            await self._bucket.delete(key)
        else:
            await self._bucket.put(key, record.model_dump_json(exclude_none=True).encode())
        if self._waiting.get(model) is record:
            self._waiting.pop(model, None)

    async def _take_away_unknown(self) -> None:
        """What an earlier worker of this node told, and is no more."""
        suffix, known = f".{encode(self._node)}", {self._bus.names.copy_key(each, self._node) for each in self._here}
        for key in await self._bucket.keys():
            if key.endswith(suffix) and key not in known:
                await self._bucket.delete(key)
