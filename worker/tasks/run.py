"""One task in this node's hands: its message, its record, its progress, and who wants it to stop."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from bus.job import Job
from schemas.model import CopyProgress
from worker.tasks.decide import Heard, Stored
from worker.tasks.effects import Asked
from worker.tasks.hand import keep
from worker.tasks.records import Records

log = logging.getLogger(__name__)

Why = Literal["cancelled", "fenced", "stopping"]


class Run:
    """From the claim to the end. All but `attend` are plain calls.

    `job` is replaced when the message comes again while the work goes on: then the old delivery is void.
    """

    def __init__(self, heard: Heard, asked: Asked, job: Job, stored: Stored) -> None:
        self.heard = heard
        self.asked = asked
        self.job = job
        self.stored = stored
        self.why: Why | None = None
        self.work: asyncio.Task[str | None] | None = None
        self._progress: CopyProgress | None = None
        self._told: CopyProgress | None = None

    def progress(self, progress: CopyProgress) -> None:
        """So far it is."""
        self._progress = progress

    def end(self, why: Why) -> None:
        """Stop the work at once; the first reason counts."""
        if self.why is None:
            self.why = why
            if self.work is not None:
                self.work.cancel()

    def seen(self, stored: Stored | None, *, held: bool) -> None:
        """The record as it stands in the bucket now."""
        if stored is None:
            return
        if not held and stored.revision > self.stored.revision:
            self.end("fenced")
        elif held and stored.record.cancel:
            self.end("cancelled")

    async def attend(self, records: Records, every_s: float, sign_every_s: float) -> None:
        """Until cancelled: keep the message, and write progress. Raises `Fenced` when the task is another's."""
        loop = asyncio.get_running_loop()
        signed_at = loop.time()
        wait_s = every_s / 4  # soon for the first time: how far a try came counts if it is lost
        while True:
            await asyncio.sleep(wait_s)
            wait_s = every_s
            if self._progress is not self._told:
                self._told = self._progress
                record = self.stored.record.model_copy(update={"progress": self._progress})
                self.stored = await records.hold(record, self.stored)
                if self.stored.record.cancel:
                    self.end("cancelled")
            if loop.time() - signed_at >= sign_every_s:
                signed_at = loop.time()
                keep(self.job)
