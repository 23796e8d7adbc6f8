"""`puna rm`: a model goes from every disk, or from one; and `puna cancel`, which ends a task."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.amounts import bytes_text
from gateway.cli.exits import FAILURE, NOT_ALLOWED, NOT_FOUND, OK, TIMEOUT, USAGE, CliError
from gateway.cli.following import Followed, following
from gateway.cli.nodes import connected
from gateway.cli.say import Teller
from gateway.cli.tables import Format, show
from gateway.cli.target import Target
from schemas.task import TaskRecord

if TYPE_CHECKING:
    from bus.connection import Bus
    from gateway.shelf import Stored
    from gateway.view import Moment

CANCEL_S: Final = 30.0
_GONE_COLUMNS: Final = ("model", "result", "nodes", "task")
_CANCEL_COLUMNS: Final = ("task", "result", "op", "model", "why")


# -- rm --------------------------------------------------------------------------------------------------------------
async def run_rm(
    target: Target, model: str, node: str | None, how: Format, *, retain: bool, sure: bool, timeout_s: float
) -> int:
    """Returns the exit code. Raises `CliError`, `BusUnavailable`."""
    from gateway.tasks import derived_task, send_task

    async with connected(target.nats_settings()) as bus, following(bus) as fleet:
        nodes = _copies_of(fleet.moment, model, node)
        if not sure and not await _confirmed(_question(fleet.moment.stored(model), model, nodes, retain)):
            Teller().line("nothing was deleted")
            return FAILURE
        body: dict[str, Any] = {"model": model} | ({"retain": True} if retain else {})
        earlier = fleet.task(derived_task("delete", body, node))
        task = await send_task(bus, "delete", body, node=node)
        removal = _Removal(fleet, model, node, task, earlier)
        if not await fleet.until(removal.over, timeout_s=timeout_s):
            Teller().line(f"puna: {model} is not gone after {timeout_s:g} s: {removal.waits_for()}")
            return TIMEOUT
        return removal.result(nodes, how)


def _copies_of(moment: Moment, model: str, node: str | None) -> list[str]:
    """Nodes with files of the model, or with a part of them. Raises `CliError`."""
    stored = moment.stored(model)
    if stored is None:
        known = moment.fleet.models.get(model)
        if known is None:
            raise CliError(f"there is no model {model!r}; see `puna ls`", NOT_FOUND)
        where = ", ".join(known.nodes)
        text = f"{model} is in the settings of {where} and its files are not Puna's: take it out of `models:` there"
        raise CliError(text, NOT_ALLOWED)
    if stored.record is not None and stored.record.deleting and not stored.copies:
        raise CliError(f"{model} was deleted already; nothing of it is left", NOT_FOUND)
    if node is not None and node not in stored.copies:
        there = ", ".join(stored.copies) or "no node"
        raise CliError(f"{node} has no copy of {model}; {there} has", NOT_FOUND)
    return [node] if node is not None else list(stored.copies)


def _question(stored: Stored | None, model: str, nodes: Sequence[str], retain: bool) -> str:
    sizes = [one.copy.size_bytes for one in stored.copies.values() if one.copy.size_bytes] if stored else []
    size = f" ({bytes_text(max(sizes))})" if sizes else ""
    where = f"from {', '.join(nodes)}" if nodes else "and its record"
    return f"Delete {model}{size} {where}{' and leave the files' if retain else ''}?"


async def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CliError(f"{question} Say -y where nobody can be asked", USAGE)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = await asyncio.to_thread(sys.stdin.readline)
    return answer.strip().lower() in ("y", "yes")


class _Removal:
    """A delete as it is followed."""

    def __init__(self, fleet: Followed, model: str, node: str | None, task: str, earlier: TaskRecord | None) -> None:
        self._fleet = fleet
        self._model = model
        self._node = node
        self._task = task
        self._epoch = earlier.epoch if earlier is not None and earlier.ended else 0

    def record(self) -> TaskRecord | None:
        """Of this time; not of an earlier delete of the same model."""
        found = self._fleet.task(self._task)
        return found if found is not None and found.epoch > self._epoch else None

    def left(self) -> list[str]:
        """Nodes that live and still have something of it."""
        moment = self._fleet.moment
        stored = moment.stored(self._model)
        mine = [] if stored is None else [node for node in stored.copies if self._node in (None, node)]
        return [node for node in mine if node in moment.fleet.nodes]

    def over(self) -> bool:
        """The task has ended, and what it was to take away has gone."""
        record = self.record()
        if record is None:
            return not self.left() and self._gone()
        return record.ended and (record.state != "done" or not self.left())

    def _gone(self) -> bool:
        """Another delete, or somebody's earlier one, has done it already."""
        stored = self._fleet.moment.stored(self._model)
        return stored is None or (stored.record is not None and stored.record.deleting)

    def waits_for(self) -> str:
        """Why it is not over."""
        record, left = self.record(), self.left()
        if record is None and not self._fleet.moment.fleet.nodes:
            return "no worker is connected; it is done as soon as one is"
        if record is None:
            return "no node has taken the task yet; see `puna tasks`"
        return f"{', '.join(left)} still has it; see `puna ls`" if left else record.reason or record.state

    def result(self, nodes: Sequence[str], how: Format) -> int:
        """Tell what came of it."""
        record = self.record()
        failed = record is not None and record.state != "done"
        away = [node for node in nodes if node not in self._fleet.moment.fleet.nodes]
        gone = [node for node in nodes if node not in away]
        data = {"model": self._model, "result": "failed" if failed else "deleted", "nodes": gone, "task": self._task}
        data |= {"away": away, "reason": (record.error or record.reason) if record else None}
        show(data, [data | {"nodes": ", ".join(gone)}], _GONE_COLUMNS, _GONE_COLUMNS, how)
        if failed and record is not None:
            Teller().line(f"puna: {self._model} was not deleted: {record.error or record.reason or record.state}")
            return FAILURE
        if away:
            Teller().line(f"{', '.join(away)} is away; its copy goes when it comes back")
        return OK


# -- cancel ----------------------------------------------------------------------------------------------------------
async def run_cancel(target: Target, task: str, how: Format) -> int:
    """Returns the exit code. Raises `CliError`, `BusUnavailable`."""
    from gateway.tasks import send_task

    async with connected(target.nats_settings()) as bus, following(bus) as fleet:
        found = await _find(bus, fleet, task)
        record = fleet.task(found)
        if record is not None and record.ended:
            return _cancelled(record, how, before=True)
        if not fleet.moment.fleet.nodes:
            return await _take_out(bus, found, record, how)
        await send_task(bus, "cancel", {"task": found})

        def ended() -> bool:
            now = fleet.task(found)
            return now is not None and now.ended

        if not await fleet.until(ended, timeout_s=CANCEL_S):
            Teller().line(f"puna: {found} was told to end and has not yet; see `puna tasks`")
            return TIMEOUT
        last = fleet.task(found)
        return OK if last is None else _cancelled(last, how, before=False)


async def _find(bus: Bus, fleet: Followed, task: str) -> str:
    """The id that begins so. Raises `CliError`: 3 for none, 2 for several."""
    from gateway.cli.records import read_tasks
    from gateway.cli.tasklist import unheard

    if fleet.task(task) is not None:
        return task
    records = await read_tasks(bus)
    known = [record.task for record in records] + [one.task for one in await unheard(bus, records)]
    found = sorted({each for each in known if each.startswith(task)})
    if not found:
        raise CliError(f"there is no task {task!r}; see `puna tasks`", NOT_FOUND)
    if len(found) > 1 and task not in found:
        raise CliError(f"{task!r} begins {len(found)} tasks: {', '.join(found[:4])}; give more of it", USAGE)
    return task if task in found else found[0]


async def _take_out(bus: Bus, task: str, record: TaskRecord | None, how: Format) -> int:
    """No node is there to end it: nobody works on it, so its message is taken out of the stream."""
    import time

    from bus.kv import Bucket
    from bus.topology import delete_message
    from gateway.cli.records import read_record
    from gateway.cli.tasklist import unheard
    from schemas.task import moved

    names, now = bus.names, time.time()
    if record is not None:
        bucket = Bucket(bus, names.bucket_tasks)
        entry = await bucket.get(task)
        record = read_record(entry) or record
        if entry is not None and not record.ended:
            record = moved(record, "cancelled", now, reason="it was cancelled while no node was there")
            await bucket.update(task, record.model_dump_json(exclude_none=True).encode(), last=entry.revision)
    sequences = [one.sequence for one in await unheard(bus, []) if one.task == task]
    for sequence in sequences:
        await delete_message(bus, names.stream_tasks, sequence)
    data = {"task": task, "result": "cancelled", "op": record.op if record else None}
    data |= {"model": record.model if record else None, "why": "no node was there; it was taken out of the queue"}
    show(data, [data], _CANCEL_COLUMNS, _CANCEL_COLUMNS, how)
    return OK


def _cancelled(record: TaskRecord, how: Format, *, before: bool) -> int:
    why = record.error or record.reason
    data = {"task": record.task, "result": record.state, "op": record.op, "model": record.model, "why": why}
    show(data, [data], _CANCEL_COLUMNS, _CANCEL_COLUMNS, how)
    if record.state == "cancelled":
        return OK
    Teller().line(
        f"puna: {record.task} {'had' if before else 'has'} ended {'before' if before else ''}: {record.state}"
    )
    return FAILURE
