"""One transfer for one content, however many models wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from worker.sources import SourceError
from worker.transfer.part import Digests


class Hears(Protocol):
    """Who waits for a content."""

    def there(self, bytes_: int) -> None:
        """So many need not come any more."""
        ...

    def came(self, bytes_: int) -> None:
        """So many came now; less than 0 when some did not hold."""
        ...


Start = Callable[[Hears], Coroutine[Any, Any, Digests]]


@dataclass(eq=False, slots=True)
class _Shared:
    listeners: list[Hears] = field(default_factory=list[Hears])
    bytes_done: int = 0
    ending: bool = False
    task: asyncio.Task[Digests] = field(init=False)

    def there(self, bytes_: int) -> None:
        self.bytes_done += bytes_
        for listener in list(self.listeners):
            listener.there(bytes_)

    def came(self, bytes_: int) -> None:
        self.bytes_done += bytes_
        for listener in list(self.listeners):
            listener.came(bytes_)


class SharedFetches:
    """Transfers by the key of their part."""

    def __init__(self) -> None:
        self._running: dict[str, _Shared] = {}

    async def fetch(self, key: str, start: Start, hears: Hears) -> Digests:
        """Have the content: by a transfer that runs already, else by `start`.

        When a transfer that somebody else began fails, `start` is tried: another source may do better. It goes on
        while anybody waits for it, and has ended when the last one who left is out of here. Raises what `start` does.
        """
        while True:
            before = self._running.get(key)
            if before is not None and before.ending:
                await asyncio.wait({before.task})
                self._running.pop(key, None)
            shared, mine = self._joined(key, start)
            shared.listeners.append(hears)
            hears.there(shared.bytes_done)
            try:
                return await self._waited(key, shared, hears)
            except SourceError:
                if mine:
                    raise
                hears.came(-shared.bytes_done)

    def _joined(self, key: str, start: Start) -> tuple[_Shared, bool]:
        shared = self._running.get(key)
        if shared is not None:
            return shared, False
        shared = self._running[key] = _Shared()
        shared.task = asyncio.get_running_loop().create_task(start(shared), name=f"fetch {key}")
        return shared, True

    async def _waited(self, key: str, shared: _Shared, hears: Hears) -> Digests:
        task = shared.task
        try:
            await asyncio.wait({task})
        finally:
            shared.listeners.remove(hears)
            if not shared.listeners and not task.done():
                shared.ending = True
                task.cancel()
                await asyncio.wait({task})
            if task.done() and self._running.get(key) is shared:
                del self._running[key]
        return task.result()
