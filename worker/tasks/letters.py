"""The dead-letter stream: what could not be done, with the reason, and without what may be a secret."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, Final, cast

import orjson

from bus.connection import Bus
from bus.job import Job
from bus.waits import backoff_s
from schemas.errors import BusUnavailable
from schemas.model import SECRET_REFERENCE, SOURCE_PARAMETERS
from schemas.subjects import encode
from schemas.task import TASK_KINDS, DeadTask, TaskRecord, TaskState

_USER: Final = re.compile(r"//[^/@\s]*@")
_HIDDEN: Final = "***"
_ERROR_CHARS: Final = 1000
_BODY_LIMIT_BYTES: Final = 64 << 10
"""A task of more than this was not meant to be one; its letter goes without a body."""


class Letters:
    """Writes and sends them, for one node. `clock`: Unix seconds."""

    def __init__(self, bus: Bus, node: str, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._node = node
        self._clock = clock

    async def of_ended(self, record: TaskRecord, job: Job) -> None:
        """Of a task that failed, or was given up."""
        error = shown_error(record.error or "no reason is known")
        letter = self._letter(job, record.op, record.task, record.state, f"task_{record.state}", error)
        letter = letter.model_copy(update={"body": _whole(job), "attempts": record.attempts})
        await self._send(letter, job)

    async def of_clash(self, op: str, task: str, error: str, job: Job) -> None:
        """Of a task whose id is another's."""
        letter = self._letter(job, op, task, "failed", "id_in_use", error)
        await self._send(letter.model_copy(update={"body": _whole(job)}), job)

    async def of_malformed(self, op: str, task: str, code: str, error: str, job: Job) -> None:
        """Of what is no task. What may be a secret in the wrong place is left out."""
        letter = self._letter(job, op, task, "dead", code, error)
        await self._send(letter.model_copy(update={"body": shown_body(op, job.payload)}), job)

    def _letter(self, job: Job, op: str, task: str, state: TaskState, code: str, error: str) -> DeadTask:
        at = self._clock()
        return DeadTask(
            task=task, op=op, subject=job.subject, node=self._node, state=state, code=code, error=error, at=at
        )

    async def _send(self, letter: DeadTask, job: Job) -> None:
        await send(self._bus, letter, f"{letter.task}.{job.stream_sequence}")


def _whole(job: Job) -> dict[str, Any]:
    """The body of a task that was read, so that nothing in it is a secret."""
    return cast("dict[str, Any]", orjson.loads(job.payload))


async def send(bus: Bus, letter: DeadTask, msg_id: str) -> None:
    """Until it is stored. `msg_id` makes the same letter, sent again at once, one letter."""
    failures = 0
    while True:
        try:
            subject = bus.names.dead(letter.op if letter.op in TASK_KINDS else encode(letter.op[:40]))
            await bus.js_publish(subject, letter.model_dump_json().encode(), msg_id=msg_id)
            return
        except BusUnavailable:
            failures += 1
            await asyncio.sleep(backoff_s(failures))


def shown_error(text: str) -> str:
    """An error without what stands before `@` in a URL, and not longer than people read."""
    return _USER.sub(f"//{_HIDDEN}@", text)[:_ERROR_CHARS]


def shown_body(op: str, payload: bytes) -> dict[str, Any] | None:
    """A task's body as it may be kept: fields that no task has, and references that are none, may be secrets that
    somebody wrote in the wrong place. None for what is no JSON object."""
    try:
        found: Any = orjson.loads(payload) if len(payload) <= _BODY_LIMIT_BYTES else None
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict):
        return None
    kind = TASK_KINDS.get(op)  # pyright: ignore[reportArgumentType, reportCallIssue]  any text may stand in a subject
    known = kind.model_fields.keys() if kind is not None else frozenset[str]()
    return {
        str(key): _shown(str(key), value, str(key) in known) for key, value in cast("dict[Any, Any]", found).items()
    }


def _shown(key: str, value: Any, known: bool) -> Any:
    if not known or (key == "token_ref" and not (isinstance(value, str) and SECRET_REFERENCE.fullmatch(value))):
        return _HIDDEN
    if key == "parameters" and isinstance(value, dict):
        given = cast("dict[Any, Any]", value)
        return {str(name): each if name in SOURCE_PARAMETERS else _HIDDEN for name, each in given.items()}
    return _USER.sub(f"//{_HIDDEN}@", value) if isinstance(value, str) else value
