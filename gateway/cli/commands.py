"""The commands that act on engines and nodes, over NATS. Each imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.options import Nats, Node, Output, Timeout, Wait, format_of, target_of

Model = Annotated[str, typer.Argument(help="The model's id; see `puna ls`.")]
ModelOrEngine = Annotated[str, typer.Argument(metavar="MODEL|ENGINE", help="A model, or an engine's id on --node.")]


def load(
    model: Model,
    nats: Nats = None,
    node: Node = None,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = "table",
) -> int:
    """Start one more engine of a model, where that costs least."""
    import asyncio

    from gateway.cli.control import Control
    from gateway.cli.loading import run_load

    control = Control(target_of(nats), format_of(output))
    return asyncio.run(run_load(control, model, node, timeout if wait else None))


def unload(
    model: Annotated[str | None, typer.Argument(help="The model's id; not needed with --engine.")] = None,
    nats: Nats = None,
    node: Node = None,
    engine: Annotated[str | None, typer.Option("--engine", help="This engine alone, on --node.")] = None,
    output: Output = "table",
) -> int:
    """Stop the engines of a model."""
    import asyncio

    from gateway.cli.control import Control, run_unload

    return asyncio.run(run_unload(Control(target_of(nats), format_of(output)), model, node, engine))


def restart(what: ModelOrEngine, nats: Nats = None, node: Node = None, output: Output = "table") -> int:
    """End an engine and start it again."""
    import asyncio

    from gateway.cli.control import Control, run_restart

    return asyncio.run(run_restart(Control(target_of(nats), format_of(output)), what, node))


def drain(
    node: Annotated[str, typer.Argument(help="The node's id; see `puna nodes`.")],
    nats: Nats = None,
    wait: Wait = False,
    timeout: Timeout = 600.0,
    output: Output = "table",
) -> int:
    """Have a node take nothing new, let its requests end, and end itself."""
    import asyncio

    from gateway.cli.control import Control, run_drain

    return asyncio.run(run_drain(Control(target_of(nats), format_of(output)), node, timeout if wait else None))


def explain(model: Model, nats: Nats = None, node: Node = None, output: Output = "table") -> int:
    """Would one more engine of a model fit? One line a node, with the numbers and the reason."""
    import asyncio

    from gateway.cli.explain import run_explain

    return asyncio.run(run_explain(target_of(nats), model, node, format_of(output)))


def logs(
    what: ModelOrEngine,
    nats: Nats = None,
    node: Node = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, max=1000, help="Last lines to show.")] = 100,
    output: Output = "table",
) -> int:
    """What an engine wrote, without what clients sent it."""
    import asyncio

    from gateway.cli.logs import run_logs

    return asyncio.run(run_logs(target_of(nats), what, node, lines, follow, format_of(output)))


def events(
    nats: Nats = None,
    node: Node = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=0, max=1000, help="Last events to show.")] = 50,
    output: Output = "table",
) -> int:
    """What happened in the fleet: engines started and crashed, nodes came and drained; kept for seven days."""
    import asyncio

    from gateway.cli.events import run_events

    return asyncio.run(run_events(target_of(nats), node, lines, follow, format_of(output)))


def add_to(app: typer.Typer) -> None:
    """Make them commands of `puna`."""
    for command in (load, unload, restart, drain, explain, logs, events):
        app.command()(command)
