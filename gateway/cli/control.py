"""`puna unload`, `restart` and `drain`: orders to nodes over NATS, each node's answer in one row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from gateway.candidates import Held, holders
from gateway.cli.exits import NOT_FOUND, OK, SOME_FAILED, TIMEOUT, USAGE, CliError, code_of
from gateway.cli.nodes import connected, from_snapshot, read_nodes
from gateway.cli.say import Teller
from gateway.cli.tables import Format, Row, show
from gateway.cli.target import Target
from schemas.errors import PunaError
from schemas.node import Heartbeat

if TYPE_CHECKING:
    from bus.connection import Bus
    from bus.kv import Entry

_COLUMNS: Final = ("node", "result", "model", "engine")


@dataclass(frozen=True, slots=True)
class Control:
    """Where orders go and how their answers are shown."""

    target: Target
    how: Format

    def tell(self, text: str) -> None:
        """To the person, beside the data."""
        Teller().line(text)

    def show(self, answers: Sequence[Answer]) -> int:
        """Print them; returns the exit code: 6 if some nodes failed and others did not."""
        show([answer.data() for answer in answers], [answer.row() for answer in answers], _COLUMNS, _COLUMNS, self.how)
        failed = [answer.error for answer in answers if answer.error is not None]
        if not failed:
            return OK
        for answer in answers:
            if answer.error is not None:
                self.tell(f"puna: {answer.node}: {answer.error.message}")
        return SOME_FAILED if len(failed) < len(answers) else code_of(failed[0])


@dataclass(frozen=True, slots=True)
class Answer:
    """What one node said to one order."""

    node: str
    done: str
    told: dict[str, Any]
    error: PunaError | None = None

    def data(self) -> dict[str, Any]:
        """For programs."""
        if self.error is None:
            return {"node": self.node, "result": self.done, **self.told}
        return {"node": self.node, "result": "failed", "error": self.error.message, "code": self.error.code}

    def row(self) -> Row:
        """For people."""
        engines = self.told.get("engines") or ([self.told["engine"]] if self.told.get("engine") else [])
        shown = {"model": self.told.get("model"), "engine": ", ".join(map(str, engines))}
        return {"node": self.node, "result": self.done if self.error is None else "failed", **shown}


async def ask(bus: Bus, node: str, verb: str, body: dict[str, Any], done: str) -> Answer:
    """One order; a refusal is an answer too. Raises `BusUnavailable` if NATS goes."""
    from gateway.orders import order

    try:
        return Answer(node, done, await order(bus, node, verb, body))
    except PunaError as error:
        return Answer(node, done, {}, error)


def known_node(beats: Sequence[Heartbeat], node: str | None) -> None:
    """Raises `CliError` with 3 for a node that is not there."""
    if node is not None and all(beat.node != node for beat in beats):
        there = ", ".join(beat.node for beat in beats) or "none"
        raise CliError(f"node {node!r} is not there; there is {there}", NOT_FOUND)


async def run_unload(control: Control, model: str | None, node: str | None, engine: str | None) -> int:
    """`puna unload`."""
    if engine is not None and node is None:
        raise CliError("--engine needs --node: an id names an engine of one node", USAGE)
    if model is None and engine is None:
        raise CliError("name a model, or --engine ID --node NODE", USAGE)
    async with connected(control.target.nats_settings()) as bus:
        held = _held(await read_nodes(bus), model, engine, node)
        body = {"engine": engine} if engine is not None else {"model": model}
        nodes = sorted({one.node for one in held})
        answers = await asyncio.gather(*(ask(bus, name, "unload", body, "unloading") for name in nodes))
    return control.show(answers)


def _held(beats: Sequence[Heartbeat], model: str | None, engine: str | None, node: str | None) -> list[Held]:
    known_node(beats, node)
    held = [one for one in holders(beats, model=model, engine=engine) if node in (None, one.node)]
    if not held:
        what = f"engine {engine!r}" if engine is not None else f"engine of {model!r}"
        raise CliError(f"there is no {what}{f' on {node}' if node else ''}; see `puna ps`", NOT_FOUND)
    return held


def the_engine(beats: Sequence[Heartbeat], what: str, node: str | None) -> Held:
    """The one engine that `what`, a model or an engine's id, means. Raises `CliError`: 3 for none, 2 for several."""
    known_node(beats, node)
    here = [one for one in holders(beats) if node in (None, one.node)]
    found = [one for one in here if one.model == what] or [one for one in here if one.engine == what]
    if not found:
        raise CliError(f"there is no engine of or with {what!r}{f' on {node}' if node else ''}", NOT_FOUND)
    if len(found) > 1:
        places = ", ".join(f"{one.engine} on {one.node}" for one in found)
        raise CliError(f"{what!r} is {places}: name one by its id and --node", USAGE)
    return found[0]


async def run_restart(control: Control, what: str, node: str | None) -> int:
    """`puna restart`."""
    async with connected(control.target.nats_settings()) as bus:
        one = the_engine(await read_nodes(bus), what, node)
        body = {"engine": one.engine} if what == one.engine else {"model": one.model}
        return control.show([await ask(bus, one.node, "restart", body, "restarting")])


async def run_drain(control: Control, node: str, wait_s: float | None) -> int:
    """`puna drain`."""
    async with connected(control.target.nats_settings()) as bus:
        known_node(await read_nodes(bus), node)
        answer = await ask(bus, node, "drain", {}, "draining")
        if answer.error is None and wait_s is not None:
            if not await until(bus, lambda beats: all(beat.node != node for beat in beats), wait_s):
                control.tell(f"puna: {node} still drains after {wait_s:g} s")
                return TIMEOUT
            answer = Answer(node, "gone", answer.told)
        return control.show([answer])


async def until(bus: Bus, true: Callable[[list[Heartbeat]], bool], wait_s: float) -> bool:
    """Until the fleet is so, looked at whenever a heartbeat comes or goes; False if it is not in time."""
    from bus.kv import Bucket, Follower

    reached = asyncio.Event()

    def heard(entries: Mapping[str, Entry]) -> None:
        if true(from_snapshot(entries)):
            reached.set()

    follower = Follower(Bucket(bus, bus.names.bucket_nodes), heard)
    try:
        async with asyncio.timeout(wait_s):
            await follower.start()
            await reached.wait()
    except TimeoutError:
        return False
    finally:
        await follower.stop()
    return True
