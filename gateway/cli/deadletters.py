"""`puna dlq`: tasks that were given up, why, and what may be done with them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from gateway.cli.amounts import seconds_text
from gateway.cli.exits import NOT_FOUND, OK, SOME_FAILED, USAGE, CliError, code_of
from gateway.cli.following import standing
from gateway.cli.nodes import connected
from gateway.cli.say import Teller
from gateway.cli.tables import Format, Row, show
from gateway.cli.target import Target
from gateway.messages import Stored, message, messages
from schemas.errors import PunaError
from schemas.task import TASK_KINDS, DeadTask, read_task

if TYPE_CHECKING:
    from bus.connection import Bus

COLUMNS: Final = ("letter", "age", "op", "model", "node", "attempts", "error")
WIDE: Final = ("letter", "age", "task", "op", "model", "node", "state", "code", "attempts", "subject", "error")
_DONE: Final = ("letter", "result", "task", "why")
HIDDEN: Final = "***"
"""Stands where a node took out what may have been a secret, or a field that no task has."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter, by its number in the stream."""

    number: int
    dead: DeadTask

    def data(self) -> dict[str, Any]:
        """For programs."""
        return {"letter": self.number, **self.dead.model_dump(mode="json")}

    def row(self, now: float) -> Row:
        """For people."""
        dead = self.dead
        shown = {"letter": self.number, "age": seconds_text(now - dead.at), "model": (dead.body or {}).get("model")}
        return {**dead.model_dump(mode="json", exclude={"body", "at"}), **shown}


async def run_ls(target: Target, how: Format) -> int:
    """`puna dlq ls`."""
    async with connected(target.nats_settings()) as bus:
        found = await _letters(bus)
    if not found and how in (Format.TABLE, Format.WIDE):
        Teller().line("there are no dead letters: no task was given up")
        return OK
    now = time.time()
    show([one.data() for one in found], [one.row(now) for one in found], COLUMNS, WIDE, how)
    return OK


async def run_show(target: Target, which: str, how: Format) -> int:
    """`puna dlq show`."""
    async with connected(target.nats_settings()) as bus:
        letter = await _one(bus, which)
    data = letter.data()
    if how in (Format.JSON, Format.YAML):
        show(data, [], (), (), how)
        return OK
    import yaml

    print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    Teller().line(_remedy(letter))
    return OK


async def run_redrive(
    target: Target, which: Sequence[str], how: Format, *, everything: bool, changes: Sequence[str]
) -> int:
    """`puna dlq redrive`: the task is sent again, as it was or with changed fields, and the letter goes."""
    changed, removed = _changes(changes)
    if everything and changes:
        raise CliError("--set goes with one letter, not with --all", USAGE)
    async with connected(target.nats_settings()) as bus:
        await standing(bus)
        chosen = await _chosen(bus, which, everything)
        results = [await _redriven(bus, letter, changed, removed) for letter in chosen]
    return _tell(results, how)


async def run_drop(target: Target, which: Sequence[str], how: Format, *, everything: bool) -> int:
    """`puna dlq drop`: the letter goes."""
    async with connected(target.nats_settings()) as bus:
        results = [await _dropped(bus, letter) for letter in await _chosen(bus, which, everything)]
    return _tell(results, how)


@dataclass(frozen=True, slots=True)
class _Result:
    letter: int
    result: str
    task: str | None
    error: PunaError | CliError | None = None

    def data(self) -> dict[str, Any]:
        why = self.error.message if self.error else None
        return {"letter": self.letter, "result": self.result, "task": self.task, "why": why}


def _tell(results: Sequence[_Result], how: Format) -> int:
    if not results and how in (Format.TABLE, Format.WIDE):
        Teller().line("there are no dead letters")
        return OK
    data = [one.data() for one in results]
    show(data, data, _DONE, _DONE, how)
    failed = [one.error for one in results if one.error is not None]
    for one in results:
        if one.error is not None:
            Teller().line(f"puna: letter {one.letter}: {one.error.message}")
    if not failed:
        return OK
    return SOME_FAILED if len(failed) < len(results) else code_of(failed[0])


async def _redriven(bus: Bus, letter: Letter, changed: Mapping[str, Any], removed: Sequence[str]) -> _Result:
    import orjson

    from bus.topology import delete_message

    try:
        payload = orjson.dumps(_body(letter, changed, removed))
        op, node = bus.names.task_parts(letter.dead.subject)
        task = read_task(op, payload, node)
        await bus.js_publish(letter.dead.subject, payload, msg_id=f"redrive.{letter.number}")
    except (PunaError, CliError) as error:
        return _Result(letter.number, "failed", letter.dead.task, error)
    await delete_message(bus, bus.names.stream_dead, letter.number)
    return _Result(letter.number, "sent again", task.id)


def _body(letter: Letter, changed: Mapping[str, Any], removed: Sequence[str]) -> dict[str, Any]:
    """The task as it is to be sent. An id that its sender chose has been used up. Raises `CliError`."""
    if letter.dead.body is None:
        raise CliError("the task was no JSON object; send it anew, and drop the letter", USAGE)
    body = {name: value for name, value in letter.dead.body.items() if name not in removed} | dict(changed)
    hidden = [name for name, value in body.items() if value == HIDDEN]
    if hidden:
        name = hidden[0]
        text = f"the value of {name} was not kept: it may be a secret, or is no field of a task"
        raise CliError(f"{text}; leave it out with --set {name}=, or give it with --set {name}=VALUE", USAGE)
    if "id" in body and "id" not in changed:
        body["id"] = f"{str(body['id'])[:100]}-{letter.number}"
    return body


def _changes(texts: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """`field=value` (YAML), and `field=` to leave a field out. Raises `CliError`."""
    import yaml

    changed: dict[str, Any] = {}
    removed: list[str] = []
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise CliError(f"--set {text!r}: write FIELD=VALUE, or FIELD= to leave it out", USAGE)
        if not value:
            removed.append(name)
            continue
        try:
            changed[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CliError(f"--set {name}: the value is no YAML", USAGE) from error
    return changed, removed


async def _dropped(bus: Bus, letter: Letter) -> _Result:
    from bus.topology import delete_message

    gone = await delete_message(bus, bus.names.stream_dead, letter.number)
    return _Result(letter.number, "dropped" if gone else "was gone", letter.dead.task)


async def _letters(bus: Bus) -> list[Letter]:
    found = [_read(one) async for one in messages(bus, bus.names.stream_dead, bus.names.dead_all())]
    return [one for one in reversed(found) if one is not None]


def _read(stored: Stored) -> Letter | None:
    try:
        return Letter(stored.sequence, DeadTask.model_validate_json(stored.payload))
    except ValidationError:
        return None


async def _chosen(bus: Bus, which: Sequence[str], everything: bool) -> list[Letter]:
    if everything == bool(which):
        raise CliError("name letters by their numbers (see `puna dlq ls`), or say --all", USAGE)
    return await _letters(bus) if everything else [await _one(bus, each) for each in which]


async def _one(bus: Bus, which: str) -> Letter:
    """By its number, or the newest of a task. Raises `CliError` with 3."""
    letter: Letter | None = None
    if which.isdigit():
        stored = await message(bus, bus.names.stream_dead, {"seq": int(which)})
        letter = _read(stored) if stored else None
    else:
        found = [each for each in await _letters(bus) if (each.dead.task or "").startswith(which)]
        letter = found[0] if found else None
    if letter is None:
        raise CliError(f"there is no dead letter {which!r}; see `puna dlq ls`", NOT_FOUND)
    return letter


def _remedy(letter: Letter) -> str:
    number, body = letter.number, letter.dead.body
    if body is None:
        return f"it cannot be sent again; `puna dlq drop {number}` takes it away"
    kind = TASK_KINDS.get(letter.dead.op)  # pyright: ignore[reportArgumentType, reportCallIssue]  any text may be there
    fields = kind.model_fields if kind is not None else {}
    change = "".join(f" --set {name}=" for name, value in body.items() if value == HIDDEN)
    missing = [name for name, field in fields.items() if field.is_required() and body.get(name) is None]
    change += "".join(f" --set {name}=VALUE" for name in missing)
    return f"`puna dlq redrive {number}{change}` sends it again, `puna dlq drop {number}` takes it away"
