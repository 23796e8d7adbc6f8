"""What everybody may know of this node's copies: states with their legal moves, and how often they are told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from schemas.model import COPY_MOVES, CopyProgress, CopyRecord, CopyState
from worker.store.manifest import Copy

log = logging.getLogger(__name__)
PROGRESS_S: Final = 2.0
Publish = Callable[[str, CopyRecord | None], None]
"""Model, and its record; None: there is no copy any more."""


class IllegalMove(ValueError):
    """A copy was to go where no copy goes."""


class Records:
    """By model. Each step is told at once, progress at most every `interval_s`."""

    def __init__(
        self,
        node: str,
        publish: Publish,
        *,
        interval_s: float = PROGRESS_S,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._publish = publish
        self._interval_s = interval_s
        self._clock = clock
        self._monotonic = monotonic
        self._records: dict[str, CopyRecord] = {}
        self._told_at: dict[str, float] = {}

    @property
    def all(self) -> Mapping[str, CopyRecord]:
        """A view of now."""
        return MappingProxyType(self._records)

    def state(self, model: str) -> CopyState | None:
        """Of a model; None without a record."""
        record = self._records.get(model)
        return record.state if record else None

    def move(self, model: str, state: CopyState, **changes: Any) -> None:
        """Another state, or news of the same one. A new record may begin anywhere. Raises `IllegalMove`."""
        before = self._records.get(model)
        now = self._clock()
        if before is None:
            record = CopyRecord(model=model, node=self._node, state=state, since=now)
        elif state != before.state and state not in COPY_MOVES[before.state]:
            raise IllegalMove(f"copy {model}: {before.state} → {state} is no legal move")
        else:
            record = before
        cleared = {"reason": None, "error": None, "next_retry_at": None}
        since = record.since if record.state == state else now
        self._tell(model, record.model_copy(update={**cleared, "state": state, "since": since, **changes}))

    def ready(self, copy: Copy, **changes: Any) -> None:
        """The model's copy can be served."""
        manifest = copy.manifest
        told = {
            "source": manifest.source,
            "revision": manifest.revision,
            "generation": manifest.generation,
            "size_bytes": manifest.size_bytes,
            "config": manifest.config,
            "progress": CopyProgress(),
            "attempt": 0,
        }
        self.move(copy.model, "Ready", **told, **changes)

    def progress(self, model: str, progress: CopyProgress) -> None:
        """How far it is; told when it is time, and at once where another phase begins."""
        record = self._records.get(model)
        if record is None:
            return
        progress = progress.model_copy(update={"updated": self._clock()})
        now = self._monotonic()
        if progress.phase == record.progress.phase and now - self._told_at.get(model, now) < self._interval_s:
            self._records[model] = record.model_copy(update={"progress": progress})
        else:
            self._tell(model, record.model_copy(update={"progress": progress}))

    def drop(self, model: str) -> None:
        """There is no copy any more, nor will there be."""
        if self._records.pop(model, None) is not None:
            self._told_at.pop(model, None)
            self._publish(model, None)

    def tell_all(self) -> None:
        """Tell each again: to a listener who has lost them."""
        for model, record in list(self._records.items()):
            self._tell(model, record)

    def _tell(self, model: str, record: CopyRecord) -> None:
        before = self._records.get(model)
        self._records[model] = record
        self._told_at[model] = self._monotonic()
        if before is None or before.state != record.state:
            fields = {"event": "copy_state", "model": model, "state": record.state, "reason": record.reason}
            log.info("copy_state", extra=fields)
        self._publish(model, record)
