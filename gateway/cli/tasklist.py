"""`puna tasks`: every task with its state, and why it is not done yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.amounts import left_text, progress_text, seconds_text
from gateway.cli.exits import OK
from gateway.cli.nodes import connected, read_nodes
from gateway.cli.records import read_tasks
from gateway.cli.say import Teller
from gateway.cli.tables import Format, Row, show
from gateway.cli.target import Target
from gateway.messages import Stored, messages
from schemas.errors import PunaError
from schemas.node import Heartbeat
from schemas.subjects import Names
from schemas.task import TaskRecord, read_task
from schemas.topology import TASK_ACK_WAIT_S

if TYPE_CHECKING:
    from bus.connection import Bus

COLUMNS: Final = ("task", "op", "model", "node", "state", "attempts", "since", "why")
WIDE: Final = ("task", "op", "model", "node", "state", "epoch", "attempts", "declined", "created", "since", "why")
ENDED_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Unheard:
    """A task in the stream of which no node has heard: it has no record."""

    task: str
    op: str
    model: str | None
    node: str | None
    """Whom it names."""
    sequence: int
    sent_at: float

    def data(self, beats: Sequence[Heartbeat]) -> dict[str, Any]:
        """As a record would tell it."""
        told = {"task": self.task, "op": self.op, "model": self.model, "node": self.node, "state": "waiting"}
        return told | {"created": self.sent_at, "sequence": self.sequence, "reason": why_unheard(self.node, beats)}

    def row(self, beats: Sequence[Heartbeat], now: float) -> Row:
        """For people."""
        shown = {"since": seconds_text(now - self.sent_at), "attempts": 0}
        return {**self.data(beats), **shown, "why": why_unheard(self.node, beats)}


def why_unheard(node: str | None, beats: Sequence[Heartbeat]) -> str:
    """Why no node has taken up a task."""
    if not beats:
        return "no worker is connected; start one with `puna worker`"
    if node is not None and all(beat.node != node for beat in beats):
        return f"node {node} is not connected; it waits until that node comes"
    if node is None and all(beat.draining for beat in beats):
        return "all nodes are draining"
    return f"{node or 'every node'} is busy with other tasks; it comes when one of those ends"


def why_still(record: TaskRecord, beats: Sequence[Heartbeat]) -> str | None:
    """Why a task that runs does not go on now, and until when; None if it does, as far as can be seen from here."""
    node = next((beat for beat in beats if beat.node == record.node), None)
    if node is not None and node.started_at <= record.since:  # both by the clock of that node
        return None
    for_any = f".{Names().tasks_durable()}." in (record.delivery or "")
    others = for_any and any(beat.node != record.node and not beat.draining for beat in beats)
    if node is None:
        elsewhere = f", or within {TASK_ACK_WAIT_S:g} s on another node" if others else ""
        return f"{record.node} is away; the task goes on when it comes back{elsewhere}"
    elsewhere = f"; if it cannot, another node does within {TASK_ACK_WAIT_S:g} s" if others else ""
    return f"{record.node} was started anew and takes it up again{elsewhere}"


def why(record: TaskRecord, now: float, beats: Sequence[Heartbeat] | None = None) -> str:
    """What there is to know of a task: its reason or error, how far it is, and when it is tried again. With `beats`,
    also that nobody works on it now, and until when."""
    told: list[str] = []
    if record.state == "running" and beats is not None and (still := why_still(record, beats)) is not None:
        told.append(still)
    elif record.state == "running" and record.progress is not None:
        told.append(progress_text(record.progress))
    if record.cancel and not record.ended:
        told.append("it is being cancelled")
    told += [text for text in (record.error, record.reason) if text]
    if record.next_retry_at is not None and not record.ended:
        wait_s = record.next_retry_at - now
        due = "next try now" if beats is None or beats else why_unheard(None, beats)
        told.append(f"next try in {left_text(wait_s)}" if wait_s > 0 else due)
    if record.state == "dead":
        told.append("see `puna dlq ls`")
    return "; ".join(told)


def row(record: TaskRecord, now: float, beats: Sequence[Heartbeat] | None = None) -> Row:
    """One task for people."""
    return {
        "task": record.task,
        "op": record.op,
        "model": record.model,
        "node": record.node,
        "state": record.state,
        "epoch": record.epoch,
        "attempts": record.attempts,
        "declined": record.declined,
        "created": seconds_text(now - record.created),
        "since": seconds_text(now - record.since),
        "why": why(record, now, beats),
    }


async def unheard(bus: Bus, known: Sequence[TaskRecord]) -> list[Unheard]:
    """Tasks in the stream without a record, the newest first. One that cannot be read is shown too: it will be a dead
    letter as soon as a node hears it."""
    names, heard = bus.names, {record.task for record in known}
    found = [_read(bus, one) async for one in messages(bus, names.stream_tasks, f"{names.prefix}.task.>")]
    return [one for one in reversed(found) if one is not None and one.task not in heard]


def _read(bus: Bus, stored: Stored) -> Unheard | None:
    try:
        op, node = bus.names.task_parts(stored.subject)
        task = read_task(op, stored.payload, node)
    except PunaError:
        return None
    return Unheard(task.id or "", op, getattr(task, "model", None), node, stored.sequence, stored.at)


async def run_tasks(target: Target, how: Format, *, everything: bool, watch: bool) -> int:
    """`puna tasks`."""
    async with connected(target.nats_settings()) as bus:
        if not watch:
            _print(*await _read_all(bus), how, everything)
            return OK
        before: object = None
        while True:
            found = await _read_all(bus)
            if (now := [one.model_dump() for one in found[0]]) != before:
                before = now
                _print(*found, how, everything)
            await asyncio.sleep(1.0)


async def _read_all(bus: Bus) -> tuple[list[TaskRecord], list[Unheard], list[Heartbeat]]:
    records, beats = await asyncio.gather(read_tasks(bus), read_nodes(bus))
    return records, await unheard(bus, records), beats


def _print(
    records: list[TaskRecord],
    waiting: list[Unheard],
    beats: list[Heartbeat],
    how: Format,
    everything: bool,
    clock: Callable[[], float] = time.time,
) -> None:
    open_ = [record for record in records if not record.ended]
    ended = [record for record in records if record.ended]
    left_out = 0 if everything else max(len(ended) - ENDED_SHOWN, 0)
    shown = [*open_, *(ended if everything else ended[:ENDED_SHOWN])]
    now = clock()
    rows = [*(one.row(beats, now) for one in waiting), *(row(record, now, beats) for record in shown)]
    if not rows and how in (Format.TABLE, Format.WIDE):
        Teller().line("there are no tasks; `puna pull MODEL` makes one")
        return
    data = [*(one.data(beats) for one in waiting), *(record.model_dump(mode="json") for record in shown)]
    show(data, rows, COLUMNS, WIDE, how)
    if left_out and how in (Format.TABLE, Format.WIDE):
        Teller().line(f"{left_out} older tasks that have ended are left out; --all shows them")
