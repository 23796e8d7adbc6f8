"""One piece of work on a model's copy, for all who ask for it, and who hears how it goes."""

from __future__ import annotations

import asyncio

from worker.sources import SourceError
from worker.store.errors import Removed
from worker.store.manifest import Copy


class Job:
    """`why`: what those who wait are told when it is ended before its time."""

    def __init__(self, kind: str, key: str, task: asyncio.Task[Copy]) -> None:
        self.kind = kind
        self.key = key
        self.task = task
        self.waiters = 0
        self.why: SourceError | None = None

    def end(self, why: SourceError) -> None:
        """End it: nobody joins it any more, and those who wait are told why."""
        self.key, self.why = "", self.why or why
        self.task.cancel()

    async def result(self) -> Copy:
        """Wait for the end, together with others; when the last one leaves, the work ends."""
        self.waiters += 1
        try:
            await asyncio.wait({self.task})
        finally:
            self.waiters -= 1
            if self.waiters == 0 and not self.task.done():
                self.end(Removed("nobody waits for it any more"))
        if self.task.cancelled():
            raise self.why or Removed("the worker stops")
        return self.task.result()


class Watch:
    """Hears what happens; this one does nothing with it. All are plain calls, on the event loop."""

    def fetched(self, model: str, seconds: float) -> None:
        """A model's files have come and are a copy now; so long after its turn began."""

    def failed(self, model: str, error: SourceError) -> None:
        """They have not, and are not tried again by themselves."""

    def skipped(self, model: str, reason: str) -> None:
        """They are not fetched at all."""

    def came(self, model: str, count_bytes: int) -> None:
        """Bytes have come; less than 0 when some did not hold."""

    def checked(self, *, good: bool, algorithm: str = "sha256") -> None:
        """A file was held against its checksum as it came."""

    def verified(self, *, good: bool, seconds: float) -> None:
        """A model's files were read again."""
