"""`puna pull`: a download task, and what becomes of it, one line a node, until it has ended.

Ctrl-C leaves the task running: it belongs to the fleet, not to this terminal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.amounts import BAR_CELLS, bytes_text, left_text
from gateway.cli.copies import copy_text
from gateway.cli.exits import FAILURE, NOT_FOUND, OK, TIMEOUT, CliError
from gateway.cli.following import Followed, following
from gateway.cli.naming import Pulled, what_to_pull
from gateway.cli.nodes import connected
from gateway.cli.say import Teller
from gateway.cli.tables import Format, show
from gateway.cli.target import Target
from gateway.cli.tasklist import why_still, why_unheard
from schemas.model import CopyRecord
from schemas.task import TaskRecord

if TYPE_CHECKING:
    from bus.connection import Bus
    from gateway.view import Moment

QUIET_EACH_S: Final = 3.0
"""Between two lines of progress where there is no terminal."""
SENT_S: Final = 3.0
"""A task that no node has taken for this long waits for something."""
_LIVE_EACH_S: Final = 0.5
_COLUMNS: Final = ("task", "model", "state", "node", "size", "source", "why")


@dataclass(frozen=True, slots=True)
class PullOptions:
    """What the command line says beside the model."""

    name: str | None = None
    node: str | None = None
    override: bool = False
    wait: bool = True
    timeout_s: float | None = None
    more: Mapping[str, Any] | None = None
    """Further fields of the task."""


async def run_pull(target: Target, text: str, options: PullOptions, how: Format) -> int:
    """Returns the exit code. Raises `CliError`, `BusUnavailable`."""
    tell = Teller()
    async with connected(target.nats_settings()) as bus, following(bus) as fleet:
        pulled = what_to_pull(text, options.name, fleet.moment)
        _check_node(fleet.moment, options)
        pull = Pull(bus, fleet, pulled, options, tell)
        await pull.send()
        if not options.wait:
            return pull.left_alone(how)
        try:
            ended = await pull.follow()
        except asyncio.CancelledError:
            tell.line(f"the download goes on: `puna ps` shows it, `puna cancel {pull.task}` ends it")
            raise
        return pull.result(ended, how)


def _check_node(moment: Moment, options: PullOptions) -> None:
    nodes = list(moment.fleet.nodes)
    if options.node is not None and options.node not in nodes and options.wait:
        there = f"there is {', '.join(nodes[:8])}" if nodes else "there is none"
        text = f"node {options.node!r} is not connected now; {there}. With --detach the task waits until it comes"
        raise CliError(text, NOT_FOUND)


class Pull:
    """One download as it is followed."""

    def __init__(self, bus: Bus, fleet: Followed, pulled: Pulled, options: PullOptions, tell: Teller) -> None:
        self.task = ""
        self._bus = bus
        self._fleet = fleet
        self._pulled = pulled
        self._options = options
        self._tell = tell
        self._ended_before: int | None = None
        self._told: dict[str, str] = {}
        self._told_at = self._sent_at = 0.0

    async def send(self) -> None:
        """Put the task into the stream. Raises `InvalidRequest`."""
        from gateway.tasks import derived_task, send_task

        pulled, options = self._pulled, self._options
        body = {"model": pulled.model, "source": pulled.source, **(options.more or {})}
        op = "download_override" if options.override else "download"
        before = self._fleet.task(derived_task(op, body, options.node))
        self._ended_before = before.epoch if before is not None and before.ended else None
        self.task = await send_task(self._bus, op, body, node=options.node)
        self._sent_at = time.monotonic()

    def record(self) -> TaskRecord | None:
        """The task's record; None while the only one is that of an earlier time it was done."""
        found = self._fleet.task(self.task)
        if found is not None and self._ended_before is not None and found.epoch <= self._ended_before:
            return None
        return found

    def left_alone(self, how: Format) -> int:
        """It was sent, and nobody waits."""
        data = {"task": self.task, "model": self._pulled.model, "source": self._pulled.source, "state": "sent"}
        self._tell.line(f"`puna tasks` shows how it goes, `puna cancel {self.task}` ends it")
        show(data, [data | {"node": self._options.node}], _COLUMNS[:4], _COLUMNS[:4], how)
        return OK

    # -- following ---------------------------------------------------------------------------------------------------
    async def follow(self) -> TaskRecord | None:
        """Show it until it has ended; None if that takes too long."""
        if sys.stderr.isatty():
            ended = await self._live()
        else:
            ended = await self._fleet.until(self._over, timeout_s=self._options.timeout_s)
        return self.record() if ended else None

    async def _live(self) -> bool:
        from rich.live import Live
        from rich.text import Text

        from gateway.cli.tables import console

        with Live(console=console(stderr=True), auto_refresh=False, transient=True) as live:

            def over() -> bool:
                live.update(Text("\n".join(self.lines()), no_wrap=True, overflow="ellipsis"), refresh=True)
                return self._has_ended()

            return await self._fleet.until(over, timeout_s=self._options.timeout_s, at_least_s=_LIVE_EACH_S)

    def _over(self) -> bool:
        """Looked at without a terminal: what is new is told, and how far it is every few seconds."""
        now = time.monotonic()
        due = now - self._told_at >= QUIET_EACH_S
        for line in self.lines(cells=0):
            node, _, text = line.partition(": ")
            head = text.split(",")[0].split(" %")[0].rstrip("0123456789 ")
            if self._told.get(node) != head or (due and self._told.get(f"{node} text") != text):
                self._tell.line(line)
                self._told[node], self._told[f"{node} text"] = head, text
                self._told_at = now
        return self._has_ended()

    def _has_ended(self) -> bool:
        record = self.record()
        return record is not None and record.ended

    def lines(self, cells: int = BAR_CELLS) -> list[str]:
        """One line a node that has, or is about to have, the model; else why nothing happens."""
        moment, record, now = self._fleet.moment, self.record(), time.time()
        stored = moment.stored(self._pulled.model)
        copies = [one.copy for one in stored.copies.values()] if stored else []
        shown = [f"{copy.node}: {copy_text(copy, now, cells=cells)}" for copy in copies if self._concerns(copy, record)]
        if record is not None and record.state in ("queued", "retrying"):
            shown.append(f"{self._pulled.model}: {_waits(record, now)}")
        elif not shown:
            shown.append(f"{self._pulled.model}: {self._quiet(record, moment)}")
        return shown

    def _concerns(self, copy: CopyRecord, record: TaskRecord | None) -> bool:
        return copy.state not in ("Ready", "Deleting") or (record is not None and record.node == copy.node)

    def _quiet(self, record: TaskRecord | None, moment: Moment) -> str:
        if record is None and time.monotonic() - self._sent_at < SENT_S:
            return "sent; a node will take it"
        beats = [one.beat for one in moment.fleet.nodes.values()]
        if record is None:
            return f"waits: {why_unheard(self._options.node, beats)}"
        return why_still(record, beats) or f"{record.state} on {record.node}"

    # -- the end -----------------------------------------------------------------------------------------------------
    def result(self, record: TaskRecord | None, how: Format) -> int:
        """Say what came of it; returns the exit code."""
        model = self._pulled.model
        if record is None:
            self._tell.line(
                f"puna: {model} is not there after {self._options.timeout_s:g} s and goes on; `puna tasks` shows how"
            )
            return TIMEOUT
        stored = self._fleet.moment.stored(model)
        copy = stored.copies.get(record.node or "") if stored else None
        size = copy.copy.size_bytes if copy else None
        data = {"task": record.task, "model": model, "state": record.state, "node": record.node, "size_bytes": size}
        data |= {"source": self._pulled.source, "reason": record.error or record.reason}
        row = {**data, "size": None if size is None else bytes_text(size), "why": data["reason"]}
        show(data, [row], _COLUMNS, _COLUMNS, how)
        if record.state == "done":
            return OK
        self._tell.line(f"puna: {_why_not(record, model)}")
        return FAILURE


def _waits(record: TaskRecord, now: float) -> str:
    told = [text for text in (record.error, record.reason) if text]
    if record.next_retry_at is not None:
        told.append(f"next try in {left_text(max(record.next_retry_at - now, 0))}")
    return f"{record.state}: {', '.join(told)}"


def _why_not(record: TaskRecord, model: str) -> str:
    reason = record.error or record.reason or "no reason is known"
    if record.state == "cancelled":
        return f"{model} was not fetched: {reason}"
    letter = f"`puna dlq show {record.task}` has all of it, `puna dlq redrive {record.task}` tries again"
    return f"{model} could not be fetched{f' to {record.node}' if record.node else ''}: {reason}\n{letter}"
