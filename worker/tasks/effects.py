"""What tasks do: each kind's effect, asked of whoever owns it. Everything here may be done twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from schemas.errors import ModelNotFound, PunaError
from schemas.model import CopyProgress, Wanted
from schemas.subjects import LABEL_ENGINE, NO_ENGINE
from schemas.task import (
    CancelTask,
    DeleteTask,
    DownloadTask,
    LoadTask,
    Task,
    TaskOp,
    UnloadTask,
    VerifyTask,
)
from worker.sources import SourceError
from worker.store.errors import Removed, Superseded
from worker.tasks.decide import Failure, Refusal

LOAD_LIMIT_S: Final = 1800.0
"""An engine that is not ready after so long has not been loaded."""
HEAVY: Final[frozenset[TaskOp]] = frozenset(("download", "download_override", "verify"))
"""These read and write whole models, so only a few of them run at once."""

OnProgress = Callable[[CopyProgress], None]


class Copies(Protocol):
    """The one owner of what this node does about models' files."""

    async def ensure(
        self, want: Wanted, on_progress: OnProgress | None = None, *, again: bool = False, patient: bool = True
    ) -> object:
        """Have it. Not `patient`: what the node lacks is not waited for."""
        ...

    async def verify(self, model: str, on_progress: OnProgress | None = None) -> object:
        """Read it again."""
        ...

    async def remove(self, model: str, *, retain: bool = False) -> None:
        """Take it away."""
        ...

    def states(self) -> Mapping[str, object]:
        """By model."""
        ...


class LoadedEngine(Protocol):
    """An engine that has its place."""

    async def ensure_ready(self, deadline_s: float) -> object:
        """Until it takes requests."""
        ...


class Engines(Protocol):
    """The one owner of engines."""

    def serves(self, model: str) -> bool:
        """Whether the model can be loaded here."""
        ...

    def of(self, model: str) -> Sequence[object]:
        """Its engines."""
        ...

    async def load(self, model: str, devices: Sequence[str] = ()) -> LoadedEngine:
        """One engine of it."""
        ...

    async def unload(self, *, model: str | None = None, engine: str | None = None, reason: str) -> list[str]:
        """Stop its engines, and wait until they are gone."""
        ...


class Wishes(Protocol):
    """Desired state, as far as tasks ask for it."""

    async def wanted(self, model: str) -> Wanted | None:
        """As the model's record wants it on this node; None: it has no record that is not a tombstone. Raises
        `WantedElsewhere`."""
        ...

    async def revive(self, model: str, sent_at: float) -> None:
        """A download that was sent at this time (by the server's clock) may go on: a tombstone older than that is taken
        away. Raises `TaskFailed` if it is newer, or if other nodes are still busy with it."""
        ...

    async def bury(self, model: str, *, retain: bool | None) -> None:
        """Put a tombstone, so that every node takes its copy away."""
        ...


class WantedElsewhere(Exception):
    """The model has a record, and that does not want it on this node."""


class TaskFailed(Exception):
    """A task cannot be done (now), for the reason that is told."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Stopped(Exception):
    """The work was ended from outside, on purpose: its model was deleted, or asked for in another way."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A task as it was read, and how it came."""

    op: TaskOp
    task: Task
    named: bool
    """It names this node."""
    sent_at: float
    """By the server's clock."""


@dataclass(frozen=True, slots=True)
class Effects:
    """The effects on this node."""

    copies: Copies
    engines: Engines
    wishes: Wishes
    cancel: Callable[[str], Awaitable[str]]
    """End another task; what that came to. Raises `TaskFailed`."""
    labels: Callable[[], Mapping[str, str]]
    knows: Callable[[str], None]
    """Whether a source can be read here. Raises `SourceError`."""
    served_elsewhere: Callable[[Asked], Awaitable[bool]]
    """Whether another node that lives suits a download, and can start engines of it."""

    async def refusal(self, asked: Asked) -> Refusal | None:
        """Why this node cannot take the task; another one may."""
        task = asked.task
        if isinstance(task, DownloadTask):
            return await self._download_refusal(asked, task)
        if isinstance(task, VerifyTask) and task.model not in self.copies.states():
            return Refusal(f"it has no copy of {task.model}")
        if isinstance(task, LoadTask) and not self.engines.serves(task.model):
            return Refusal(f"{task.model} is not one of its models")
        if isinstance(task, UnloadTask) and not asked.named and not self.engines.of(task.model):
            return Refusal(f"it has no engine of {task.model}")
        return None

    async def _download_refusal(self, asked: Asked, task: DownloadTask) -> Refusal | None:
        labels = self.labels()
        if not task.selector.holds(labels):
            return Refusal("its labels do not match the selector")
        if not asked.named and labels.get(LABEL_ENGINE) == NO_ENGINE and await self.served_elsewhere(asked):
            return Refusal("it has no engine program, and other nodes have one")
        try:
            self.knows(task.source)
            await self.wishes.wanted(task.model)
        except SourceError as error:
            return Refusal(error.message, own=True)
        except WantedElsewhere as error:
            return Refusal(str(error), own=True)
        return None

    async def perform(self, asked: Asked, on_progress: OnProgress) -> str | None:
        """Do it; what there is to say of the result. Raises `TaskFailed`, `Stopped`."""
        try:
            return await self._perform(asked, on_progress)
        except (Removed, Superseded) as error:
            raise Stopped(error.message) from error
        except (SourceError, PunaError) as error:
            of_node = isinstance(error, SourceError) and error.of_node
            failure = Failure(error.code, error.message, error.retryable, error.retry_after_s, of_node)
            raise TaskFailed(failure) from error

    async def _perform(self, asked: Asked, on_progress: OnProgress) -> str | None:
        match asked.task:
            case DownloadTask() as task:
                return await self._download(asked, task, on_progress)
            case DeleteTask() as task:
                return await self._delete(task, named=asked.named)
            case VerifyTask() as task:
                await self.copies.verify(task.model, on_progress)
                return "every file is as it should be"
            case LoadTask() as task:
                engine = await self.engines.load(task.model, task.devices)
                await engine.ensure_ready(LOAD_LIMIT_S)
                return None
            case UnloadTask() as task:
                return await self._unload(task)
            case CancelTask() as task:
                return await self.cancel(task.task)

    async def _download(self, asked: Asked, task: DownloadTask, on_progress: OnProgress) -> str | None:
        await self.wishes.revive(task.model, asked.sent_at)
        try:
            recorded = await self.wishes.wanted(task.model)
        except WantedElsewhere as error:
            raise TaskFailed(Failure("wanted_elsewhere", str(error), retryable=False)) from error
        wanted = recorded or Wanted.model_validate(task.model_dump(include=set(Wanted.model_fields)))
        again = asked.op == "download_override"
        await self.copies.ensure(wanted, on_progress, again=again, patient=asked.named)
        return "as the model's record says" if recorded is not None else None

    async def _delete(self, task: DeleteTask, *, named: bool) -> str | None:
        if not named:
            await self.wishes.bury(task.model, retain=task.retain)
            return "every node takes its copy away"
        try:
            recorded = await self.wishes.wanted(task.model)
        except WantedElsewhere:
            recorded = None
        if recorded is not None:
            text = f"the record of {task.model} wants it on this node; change the record, or delete it everywhere"
            raise TaskFailed(Failure("wanted_here", text, retryable=False))
        await self.copies.remove(task.model, retain=bool(task.retain))
        return None

    async def _unload(self, task: UnloadTask) -> str | None:
        try:
            gone = await self.engines.unload(model=task.model, reason="a task asked")
        except ModelNotFound:
            return f"it has no engine of {task.model}"
        return f"stopped {', '.join(gone)}"
