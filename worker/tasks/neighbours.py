"""The other nodes, as their heartbeats tell of them; read when a task asks, not followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from pydantic import ValidationError

from bus.kv import Bucket
from schemas.errors import PunaError
from schemas.node import Heartbeat
from schemas.subjects import LABEL_ENGINE, NO_ENGINE
from schemas.task import DownloadTask, LoadTask, UnloadTask
from worker.tasks.effects import Asked

FRESH_S: Final = 2.0


class Neighbours:
    """Nodes that live, at most `FRESH_S` old."""

    def __init__(self, bucket: Bucket, node: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._node = node
        self._monotonic = monotonic
        self._beats: tuple[Heartbeat, ...] = ()
        self._read_at = float("-inf")

    async def beats(self) -> tuple[Heartbeat, ...]:
        """The last heartbeat of each; while the server cannot be asked, those that were known."""
        if self._monotonic() - self._read_at >= FRESH_S:
            try:
                entries = await self._bucket.entries()
            except PunaError:
                return self._beats
            found = (_beat(entry.value) for entry in entries.values())
            self._beats = tuple(beat for beat in found if beat is not None and not beat.draining)
            self._read_at = self._monotonic()
        return self._beats

    async def labels(self) -> Mapping[str, Mapping[str, str]]:
        """By node."""
        return {beat.node: beat.labels for beat in await self.beats()}

    async def suit(self, asked: Asked, outside: Collection[str] = ()) -> bool:
        """Whether a node other than this one and those of `outside` may take the task, as far as can be seen from
        here. Of the nodes that a download suits, those that can start engines count, if there are any."""
        others = [beat for beat in await self.beats() if beat.node != self._node and beat.node not in outside]
        match asked.task:
            case DownloadTask() as task:
                serving = await self._serving(task)
                return any(beat in serving if serving else task.selector.holds(beat.labels) for beat in others)
            case LoadTask() as task:
                return any(offer.model == task.model for beat in others for offer in beat.offers)
            case UnloadTask() as task:
                return any(engine.model == task.model for beat in others for engine in beat.engines)
            case _:
                return False

    async def serve(self, asked: Asked) -> bool:
        """Whether a node other than this one suits a download, and can start engines of it."""
        found = await self._serving(asked.task) if isinstance(asked.task, DownloadTask) else ()
        return any(beat.node != self._node for beat in found)

    async def _serving(self, task: DownloadTask) -> Collection[Heartbeat]:
        beats = await self.beats()
        return [
            beat for beat in beats if beat.labels.get(LABEL_ENGINE) != NO_ENGINE and task.selector.holds(beat.labels)
        ]


def _beat(raw: bytes) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(raw)
    except ValidationError:
        return None
