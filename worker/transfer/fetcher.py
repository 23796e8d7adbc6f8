"""The bytes of one file, from where its source says to the disk."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from worker.devices import aside
from worker.sources import RemoteFile
from worker.transfer.asking import Means, Sign
from worker.transfer.buffers import BufferPool
from worker.transfer.client import Client
from worker.transfer.cooldown import Cooldown
from worker.transfer.copying import copy_file
from worker.transfer.dial import Dial
from worker.transfer.disk import discard
from worker.transfer.limits import Limits
from worker.transfer.part import Digests, Part
from worker.transfer.settings import DownloadSettings
from worker.transfer.transfer import Transfer, check
from worker.transfer.underway import memory_bytes

__all__ = ["Fetcher", "Sign"]


_SYSTEM: Final = Path("/proc/sys/net/core/rmem_max")


class Fetcher:
    """All downloads of a node: they share connections, memory, limits and cool-downs."""

    def __init__(
        self,
        settings: DownloadSettings,
        *,
        cooldown: Cooldown | None = None,
        dial: Dial | None = None,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.cooldown: Final = cooldown or Cooldown()
        self.client: Final = Client(
            dial or Dial(settings.connect_timeout_s), self.cooldown, read_timeout_s=settings.read_timeout_s
        )

        def pool(size: int | None) -> BufferPool:
            total = memory_bytes(size, settings.buffer_bytes // settings.concurrency)
            return BufferPool(total, settings.multipart_concurrency)

        limits = Limits(settings.bytes_per_s, settings.per_source_bytes_per_s)
        self._settings = settings
        self._means = Means(self.client, pool, limits, settings, _system_bytes(), dice)
        self._files = asyncio.Semaphore(settings.concurrency)
        self._hub_files = asyncio.Semaphore(settings.hf_max_workers)

    async def fetch(
        self, file: RemoteFile, sign: Sign, part: Part, on_bytes: Callable[[int], None], *, source: str = ""
    ) -> Digests:
        """Have the whole file in `part.data`, synced and checked against its size and digest.

        Bytes that an earlier call, of whatever process, has brought are not asked for again. `on_bytes` is told of
        each step: bytes that are there now, those of earlier calls first; less than 0 when some did not hold. `source`
        is the scheme, by which limits and tries are chosen.

        Raises a `SourceError`; `retryable` ones after the tries of the settings. The part stays, so that a later call
        goes on, except after `Corrupt`. Cancelled, it stops at once, and nothing writes any more.
        """
        if source == "hf":
            async with self._hub_files:
                return await self._fetch(file, sign, part, on_bytes, source)
        return await self._fetch(file, sign, part, on_bytes, source)

    def close(self) -> None:
        """End idle connections."""
        self.client.close()

    async def _fetch(
        self, file: RemoteFile, sign: Sign, part: Part, on_bytes: Callable[[int], None], source: str
    ) -> Digests:
        async with self._files:
            if urlsplit(file.url).scheme == "file":
                digests = await copy_file(file, part, on_bytes, self._means.limits.share(source, file.url))
                error = check(file, digests)
                if error is not None:
                    await aside(lambda: discard(part), "transfer-discard")
                    raise error
                return digests
            return await Transfer(self._means, file, sign, part, on_bytes, source).run()


def _system_bytes() -> int | None:
    try:
        return int(_SYSTEM.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
