"""Tasks: what an operator asks of one node, or of any, by a message in the tasks stream; and the record of each.

| from     | to                                        |                                                       |
|----------|-------------------------------------------|-------------------------------------------------------|
| queued   | running, cancelled, dead                  | seen by a node, not begun                             |
| running  | running, retrying, done, failed, cancelled, dead | a later epoch of another node is `running` again |
|          | queued                                    | this node cannot do it, another may (`unable`)        |
| retrying | running, cancelled, dead                  | waits for its next try                                |
| done, failed, cancelled, dead | -                    | the end; `dead` lies in the dead-letter stream        |
"""

from __future__ import annotations

import difflib
import hashlib
from typing import Annotated, Any, Final, Literal, cast

import orjson
from pydantic import AfterValidator, Field, ValidationError

from schemas.errors import InvalidName, InvalidRequest, UnknownField
from schemas.model import CopyProgress, ModelId, Wanted
from schemas.node import Wire
from schemas.openai import parse_object
from schemas.selector import Selector, Strict
from schemas.subjects import check_request_id

BODY_LIMIT_BYTES: Final = 256 << 10
TRIES: Final = 5
TaskOp = Literal["download", "download_override", "delete", "load", "unload", "verify", "cancel"]
TASK_OPS: Final[tuple[TaskOp, ...]] = ("download", "download_override", "delete", "load", "unload", "verify", "cancel")
TaskState = Literal["queued", "running", "retrying", "done", "failed", "cancelled", "dead"]
TASK_MOVES: Final[dict[TaskState, tuple[TaskState, ...]]] = {
    "queued": ("running", "cancelled", "dead"),
    "running": ("running", "queued", "retrying", "done", "failed", "cancelled", "dead"),
    "retrying": ("running", "cancelled", "dead"),
    "done": (),
    "failed": (),
    "cancelled": (),
    "dead": (),
}


def _is_id(text: str) -> str:
    try:
        return check_request_id(text)
    except InvalidName as error:
        raise ValueError(error.message) from error


TaskId = Annotated[str, AfterValidator(_is_id)]


class DownloadTask(Wanted):
    """Have a model on a node."""

    id: TaskId | None = None
    selector: Selector = Selector()
    """Which nodes may take it, of those that hear it."""


class DeleteTask(Strict):
    """Take a model away: from the node that is named in the subject, else from every node."""

    model: ModelId
    id: TaskId | None = None
    retain: bool | None = None
    """Leave the files; unset: as the model's record says."""


class LoadTask(Strict):
    """Start an engine of a model that is on the disk."""

    model: ModelId
    id: TaskId | None = None
    devices: tuple[Annotated[str, Field(max_length=64)], ...] = Field(default=(), max_length=64)


class UnloadTask(Strict):
    """Stop the model's engines."""

    model: ModelId
    id: TaskId | None = None


class VerifyTask(Strict):
    """Read all files of a model again and compare them with their checksums."""

    model: ModelId
    id: TaskId | None = None


class CancelTask(Strict):
    """End another task, wherever it is."""

    task: TaskId
    id: TaskId | None = None


Task = DownloadTask | DeleteTask | LoadTask | UnloadTask | VerifyTask | CancelTask
TASK_KINDS: Final[dict[TaskOp, type[Task]]] = {
    "download": DownloadTask,
    "download_override": DownloadTask,
    "delete": DeleteTask,
    "load": LoadTask,
    "unload": UnloadTask,
    "verify": VerifyTask,
    "cancel": CancelTask,
}


def read_task(op: str, payload: bytes, node: str | None = None) -> Task:
    """The task in a message, for `node` or any; its `id` is set.

    A missing id follows from the content, so the same task sent twice is one task. Raises `InvalidRequest` and its
    kinds, which name field and remedy.
    """
    kind = TASK_KINDS.get(cast(TaskOp, op))
    if kind is None:
        raise InvalidRequest(f"task {op[:40]!r} is none of {', '.join(TASK_OPS)}", param="op")
    if len(payload) > BODY_LIMIT_BYTES:
        raise InvalidRequest(f"the task has {len(payload)} bytes; at most {BODY_LIMIT_BYTES} are allowed")
    body = parse_object(payload)
    try:
        task = kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(kind, error) from error
    return task if task.id else task.model_copy(update={"id": derived_id(op, body, node)})


def derived_id(op: str, body: object, node: str | None = None) -> str:
    """The id of a task that has none: the same for the same operation, node and fields, in whatever order."""
    canonical = orjson.dumps([op, body, node] if node else [op, body], option=orjson.OPT_SORT_KEYS)
    return "t-" + hashlib.sha256(canonical).hexdigest()[:24]


def _refusal(kind: type[Task], error: ValidationError) -> InvalidRequest:
    found = error.errors(include_url=False, include_input=False)
    unknown = [each for each in found if each["type"] == "extra_forbidden"]
    first = (unknown or found)[0]  # a field that is missing may be there under a wrong name
    field = ".".join(str(part) for part in first["loc"])[:120]
    message = first["msg"].removeprefix("Value error, ")
    if unknown:
        near = difflib.get_close_matches(field, kind.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"this task takes {', '.join(kind.model_fields)}"
        return UnknownField(f"{field}: no such field; {hint}", param=field)
    return InvalidRequest(f"{field}: {message}" if field else message, param=field or None)


class Unable(Wire):
    """A node that cannot do a task which any may do. `passing`: it may be able later."""

    node: str
    reason: str
    passing: bool = False


class TaskRecord(Wire):
    """The value under `<task id>` in the tasks bucket, written by compare-and-set only.

    `epoch` counts the nodes that took the task over: a write of an older epoch is refused. Times are Unix seconds by
    the writer's clock: for people.
    """

    task: str
    op: TaskOp
    model: str | None = None
    node: str | None = None
    """Who does it, or did it last."""
    holder: str | None = None
    """The process of that node: one that was started anew is another holder."""
    sequence: int | None = None
    """Of the message in the tasks stream that is being worked on."""
    delivery: str | None = None
    """Where that message is acknowledged, while the holder has it in its hands: so that its next life can go on."""
    epoch: int = 1
    state: TaskState = "queued"
    attempts: int = 0
    reached_bytes: int = 0
    """The furthest that a try came whose process was lost; one that came further than all before does not count."""
    declined: int = 0
    """Times that a node which heard it could not take it."""
    unable: tuple[Unable, ...] = ()
    """Nodes that cannot do it: it is for the others."""
    cancel: bool = False
    """Somebody wants it to end; who works on it sees this and stops."""
    created: float
    since: float
    reason: str | None = None
    error: str | None = None
    next_retry_at: float | None = None
    progress: CopyProgress | None = None

    @property
    def ended(self) -> bool:
        """Nothing more will happen."""
        return not TASK_MOVES[self.state]


class IllegalMove(ValueError):
    """A task was to go where no task goes."""


def moved(record: TaskRecord, state: TaskState, now: float, **changes: object) -> TaskRecord:
    """The record after a move. Raises `IllegalMove`."""
    if state not in TASK_MOVES[record.state]:
        raise IllegalMove(f"task {record.task}: {record.state} → {state} is no legal move")
    since = record.since if state == record.state else now
    return record.model_copy(update={"state": state, "since": since, **changes})


class DeadTask(Wire):
    """A message in the dead-letter stream. `body` is the task as it was sent, without what may be a secret, and None
    if it was no JSON object; `at` is Unix seconds by the node's clock."""

    task: str | None = None
    op: str
    subject: str
    node: str
    """Which gave it up."""
    state: TaskState
    code: str
    error: str
    attempts: int = 0
    at: float
    body: dict[str, Any] | None = None
