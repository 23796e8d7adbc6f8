"""`python -m bench.simulate`: simulated nodes in this process, until a signal or the end of standard input.

Once they take requests, one JSON line goes to stdout: `{"pid", "nodes", "models", "journal"}`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from bench.simulate.journal import Journal
from bench.simulate.settings import Simulation, simulation

USAGE: Final = 2
FAILURE: Final = 1
UNAVAILABLE: Final = 69

Nats = Annotated[str, typer.Option(help="NATS server with JetStream.")]
Config = Annotated[
    Path | None, typer.Option(help="YAML file: nodes, devices, models and how they behave.", exists=True)
]
Nodes = Annotated[int | None, typer.Option(help="How many nodes.")]
First = Annotated[int | None, typer.Option(help="Number of the first node, where a fleet has several processes.")]
DeviceCount = Annotated[int | None, typer.Option("--devices", help="Devices of each node.")]
DeviceGib = Annotated[float | None, typer.Option(help="Memory of each device.")]
Slots = Annotated[int | None, typer.Option(help="Slots of each engine.")]
Model = Annotated[
    list[str] | None, typer.Option(help="NAME or NAME,KEY=VALUE,…: gib=4,load=lognormal:2:0.5. May be repeated.")
]
Seed = Annotated[int | None, typer.Option(help="Of all dice.")]
Folder = Annotated[Path | None, typer.Option(help="For models and the nodes' state; a temporary one if not given.")]
JournalPath = Annotated[Path | None, typer.Option("--journal", help="File that is told all that happens.")]
LogLevel = Annotated[str, typer.Option(help="debug, info, warning or error.")]
ParentPid = Annotated[int | None, typer.Option(help="End when this process ends.")]


def simulate(
    nats: Nats = "nats://127.0.0.1:4222",
    config: Config = None,
    nodes: Nodes = None,
    first: First = None,
    devices: DeviceCount = None,
    device_gib: DeviceGib = None,
    slots: Slots = None,
    model: Model = None,
    seed: Seed = None,
    folder: Folder = None,
    journal: JournalPath = None,
    log_level: LogLevel = "warning",
    parent_pid: ParentPid = None,
) -> None:
    """Run simulated nodes: real workers, whose engines and devices are make-believe."""
    given: dict[str, Any] = {"nodes": nodes, "first": first, "devices": devices, "device_gib": device_gib}
    given |= {"slots": slots, "seed": seed, "models": models(model) if model else None}
    try:
        told = simulation(config, given)
    except (ValueError, OSError) as error:
        _give_up(str(error), USAGE)
    from web import logs, program

    logs.set_up(log_level, "json")
    with tempfile.TemporaryDirectory(prefix="puna-simulation-") as temporary, Journal(journal) as kept:
        home = (folder or Path(temporary)).resolve()
        raise SystemExit(program.run(_run(told, nats, home, kept, parent_pid)))


def models(texts: list[str]) -> dict[str, dict[str, str]]:
    """`NAME,KEY=VALUE,…` each. Raises `ValueError`."""
    named: dict[str, dict[str, str]] = {}
    for text in texts:
        name, *pairs = text.split(",")
        named[name] = dict(_pair(pair) for pair in pairs)
    return named


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"--model …,{text}: write KEY=VALUE")
    return key, value


def _give_up(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"bench.simulate: {message}\n")
    raise SystemExit(code)


async def _run(told: Simulation, nats: str, folder: Path, journal: Journal, parent_pid: int | None) -> int:
    from bench.simulate.nodes import SimulatedNodes
    from schemas.errors import PunaError
    from web.collector import settle_memory
    from web.program import announce

    try:
        async with SimulatedNodes(told, nats, folder, journal) as nodes:
            settle_memory()
            announce({"pid": os.getpid(), "nodes": nodes.names, "models": list(told.models)})
            await _until_ended(parent_pid)
    except PunaError as error:
        sys.stderr.write(f"bench.simulate: {error.message}\n")
        return UNAVAILABLE
    return 0


async def _until_ended(parent_pid: int | None) -> None:
    from web.program import outlived

    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    ends: list[asyncio.Task[Any]] = [asyncio.create_task(over.wait(), name="signal")]
    if parent_pid is not None:
        ends.append(asyncio.create_task(outlived(parent_pid), name="parent watch"))
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for each in ends:
        each.cancel()


if __name__ == "__main__":
    typer.run(simulate)
