"""`puna load`: the cheapest node is asked first, then the next one; with `--wait`, until the model is ready."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.candidates import candidates, holders
from gateway.cli.control import Answer, Control, ask, until
from gateway.cli.exits import FAILURE, OK, TIMEOUT
from gateway.cli.nodes import connected, read_nodes
from gateway.cli.tables import state_of
from schemas.node import Engine, Heartbeat

if TYPE_CHECKING:
    from bus.connection import Bus

_ENDED = frozenset(("ready", "crashed"))


async def run_load(control: Control, model: str, node: str | None, wait_s: float | None) -> int:
    """Returns the exit code. Raises `PunaError` if no node can be asked at all, `BusUnavailable`."""
    async with connected(control.target.nats_settings()) as bus:
        answers: list[Answer] = []
        beats = await read_nodes(bus)
        for name in candidates(beats, model, node):
            answers.append(await ask(bus, name, "load", {"model": model}, "loading"))
            if answers[-1].error is None:
                break
        taken = answers[-1]
        if taken.error is not None:
            return control.show(answers)
        if wait_s is not None:
            there = {one.engine for one in holders(beats, model=model) if one.node == taken.node}
            code = await _wait(control, bus, model, taken, there, wait_s)
            if code != OK:
                return code
            taken = Answer(taken.node, "ready", taken.told)
        return control.show([taken])


async def _wait(control: Control, bus: Bus, model: str, taken: Answer, there: set[str], wait_s: float) -> int:
    last: list[Engine] = []
    told: list[str] = []

    def over(beats: list[Heartbeat]) -> bool:
        last[:] = _engines(beats, model, taken, there)
        text = f"{taken.node}: {model} is {state_of(last[0], time.time())}" if last else ""
        if text and told[-1:] != [text]:
            told.append(text)
            control.tell(text)
        return any(engine.state in _ENDED for engine in last)

    if not await until(bus, over, wait_s):
        control.tell(f"puna: {model} is not ready on {taken.node} after {wait_s:g} s")
        return TIMEOUT
    if any(engine.state == "ready" for engine in last):
        return OK
    control.tell(f"puna: {model} did not start on {taken.node}: {last[0].reason or 'no reason is known'}")
    return FAILURE


def _engines(beats: Sequence[Heartbeat], model: str, taken: Answer, there: set[str]) -> list[Engine]:
    """The engine that the node named, or, where it could not yet, those of the model that were not there before."""
    here = [engine for beat in beats if beat.node == taken.node for engine in beat.engines if engine.model == model]
    named = taken.told.get("engine")
    return [one for one in here if (one.engine not in there if named is None else one.engine == named)]
