"""The dead-letter stream: what could not be done, with the reason, and without what may be a secret."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, cast

import orjson

from bus.connection import Bus
from bus.waits import backoff_s
from schemas.errors import BusUnavailable
from schemas.model import SECRET_REFERENCE, SOURCE_PARAMETERS
from schemas.subjects import encode
from schemas.task import TASK_KINDS, DeadTask

_USER: Final = re.compile(r"//[^/@\s]*@")
_HIDDEN: Final = "***"
_ERROR_CHARS: Final = 1000
_BODY_LIMIT_BYTES: Final = 64 << 10
"""A task of more than this was not meant to be one; its letter goes without a body."""


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
