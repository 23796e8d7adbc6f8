"""What is being done about each model because its record wants it: one piece of work a model, again after a failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from schemas.model import CopyRecord, ModelRecord, Wanted
from worker.desired.decide import Ensure, Leave, Remove, Verdict
from worker.sources import SourceError
from worker.store.errors import Removed, Superseded

log = logging.getLogger(__name__)

SOON_S: Final = 5.0
"""After somebody else has done something else about the model."""
LATER_S: Final = 300.0
"""After a failure that will hardly pass by itself; twice as long each time, up to `LATEST_S`."""
LATEST_S: Final = 3600.0
_BUSY: Final = ("Downloading", "Verifying", "Updating")


class Copies(Protocol):
    """The one owner of what this node does about models' files."""

    async def ensure(self, want: Wanted) -> object:
        """Have it."""
        ...

    async def remove(self, model: str, *, retain: bool = False) -> None:
        """Take it away."""
        ...

    def postpone(self, want: Wanted, reason: str, at: float) -> None:
        """Say why it does not come yet, and when (Unix seconds)."""
        ...

    def states(self) -> Mapping[str, CopyRecord]:
        """By model."""
        ...


class Notes(Protocol):
    """Where the records of copies are noted."""

    async def keep(self, record: ModelRecord, revision: int) -> None:
        """Note a record."""
        ...

    async def drop(self, model: str) -> None:
        """Forget one."""
        ...


@dataclass(slots=True)
class _Work:
    verdict: Ensure | Remove
    task: asyncio.Task[None]


@dataclass(slots=True)
class _Failed:
    verdict: Ensure | Remove
    times: int
    due_at: float
    superseded: bool = False


class Works:
    """`begin_at`: before that, on the monotonic clock, no download begins. `ended` is called when a piece of work has.

    Work that another piece takes the place of is not cancelled: the owner of the copies ends what it must, and what it
    must not it joins.
    """

    def __init__(
        self,
        copies: Copies,
        notes: Notes,
        *,
        begin_at: float,
        ended: Callable[[], None],
        revision: Callable[[str], int],
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._copies = copies
        self._notes = notes
        self._begin_at = begin_at
        self._ended = ended
        self._revision = revision
        self._monotonic = monotonic
        self._clock = clock
        self._works: dict[str, _Work] = {}
        self._failed: dict[str, _Failed] = {}
        self._waiting = False
        self.closed = False

    def busy(self, model: str) -> bool:
        """Whether something is being done about it."""
        return model in self._works

    def due_at(self) -> float:
        """When `follow` may do something that it could not do at the last call; infinite: never."""
        due = [failed.due_at for model, failed in self._failed.items() if model not in self._works]
        return min([*due, self._begin_at] if self._waiting else due, default=float("inf"))

    def follow(self, verdicts: Mapping[str, Verdict]) -> None:
        """Let what is done be what these verdicts of all models say."""
        self._waiting = False
        for model in self._failed.keys() - verdicts.keys():
            del self._failed[model]
        for model in self._works.keys() - verdicts.keys():
            self._cancel(model)
        for model, verdict in verdicts.items():
            self.follow_one(model, verdict)

    def follow_one(self, model: str, verdict: Verdict) -> None:
        """The same for one model."""
        if self.closed:
            return
        work = self._works.get(model)
        if isinstance(verdict, Leave):
            self._failed.pop(model, None)
            if not verdict.wanted and work is not None and isinstance(work.verdict, Ensure):
                self._cancel(model)
            return
        if work is not None and _same(work.verdict, verdict):
            return
        if self._may_begin(model, verdict):
            self._begin(model, verdict)

    async def stop(self) -> None:
        """End what is done; what has come of the files stays. Safe to call twice."""
        self.closed = True
        ending = [work.task for work in self._works.values()]
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    # -- beginning ---------------------------------------------------------------------------------------------------
    def _may_begin(self, model: str, verdict: Ensure | Remove) -> bool:
        failed, now = self._failed.get(model), self._monotonic()
        if failed is not None and not _same(failed.verdict, verdict):
            del self._failed[model]
            failed = None
        if failed is not None and now < failed.due_at:
            return False
        if failed is not None and failed.superseded and self._state(model) in _BUSY:
            failed.due_at = now + SOON_S
            return False
        if isinstance(verdict, Ensure) and verdict.fetches and now < self._begin_at:
            self._wait(verdict, self._begin_at - now)
            return False
        return True

    def _wait(self, verdict: Ensure, wait_s: float) -> None:
        self._waiting = True
        reason = "waits a little after the start, so that not all nodes fetch at once"
        self._copies.postpone(verdict.record, reason, self._clock() + wait_s)

    def _state(self, model: str) -> str | None:
        record = self._copies.states().get(model)
        return record.state if record is not None else None

    def _cancel(self, model: str) -> None:
        work = self._works.get(model)
        if work is not None and isinstance(work.verdict, Ensure):
            del self._works[model]
            work.task.cancel()

    def _begin(self, model: str, verdict: Ensure | Remove) -> None:
        name = type(verdict).__name__.lower()
        log.info("desired", extra={"event": f"desired_{name}", "model": model, "reason": verdict.reason})
        task = asyncio.get_running_loop().create_task(self._work(model, verdict), name=f"desired {name} {model}")
        work = self._works[model] = _Work(verdict, task)
        task.add_done_callback(lambda _: self._done(model, work))

    # -- working -----------------------------------------------------------------------------------------------------
    async def _work(self, model: str, verdict: Ensure | Remove) -> None:
        if isinstance(verdict, Remove):
            await self._copies.remove(model, retain=verdict.retain)
            if self._is_current(model, verdict):
                await self._notes.drop(model)
            return
        try:
            await self._notes.keep(verdict.record, self._revision(model))
        except OSError as error:  # the copy is worth more than the note of it
            fields = {"event": "record_not_noted", "model": model, "error": error.strerror}
            log.error("record_not_noted", extra=fields)
        if self._is_current(model, verdict):
            await self._copies.ensure(verdict.record)

    def _is_current(self, model: str, verdict: Ensure | Remove) -> bool:
        work = self._works.get(model)
        return work is not None and work.verdict is verdict

    def _done(self, model: str, work: _Work) -> None:
        error = None if work.task.cancelled() else work.task.exception()
        if self._works.get(model) is not work:
            return
        del self._works[model]
        if error is None:
            if not work.task.cancelled():
                self._failed.pop(model, None)
        else:
            self._fail(model, work.verdict, error)
        self._ended()

    def _fail(self, model: str, verdict: Ensure | Remove, error: BaseException) -> None:
        before = self._failed.get(model)
        times = before.times + 1 if before is not None else 1
        superseded = isinstance(error, (Removed, Superseded))
        wait_s = SOON_S if superseded else self._wait_s(model, error, times)
        self._failed[model] = _Failed(verdict, times, self._monotonic() + wait_s, superseded)
        told: dict[str, Any] = {"model": model, "retry_in_s": round(wait_s, 1), "error": str(error)}
        known = isinstance(error, (SourceError, OSError))
        log.warning("desired_failed", extra={"event": "desired_failed", **told}, exc_info=None if known else error)
        if isinstance(verdict, Ensure) and not superseded:
            self._copies.postpone(verdict.record, str(error), self._clock() + wait_s)

    def _wait_s(self, model: str, error: BaseException, times: int) -> float:
        """What the copy's record announces; else ever longer."""
        record = self._copies.states().get(model)
        if isinstance(error, SourceError) and error.retryable and record is not None and record.next_retry_at:
            return max(record.next_retry_at - self._clock(), 1.0)
        return min(LATER_S * 2 ** min(times - 1, 8), LATEST_S)


def _same(one: Ensure | Remove, other: Ensure | Remove) -> bool:
    """Whether the work for both is the same; the reason in words does not matter."""
    if isinstance(one, Ensure) and isinstance(other, Ensure):
        return one.record == other.record
    return isinstance(one, Remove) and isinstance(other, Remove) and one.retain == other.retain
