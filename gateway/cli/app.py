"""The commands of `puna`. Each imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gateway.cli import commands, modelcommands
from gateway.cli.exits import FAILURE, INTERRUPTED, MEANINGS, OK, USAGE, CliError
from gateway.cli.options import ApiKey, Gateway, Nats, Output, Watch, format_of, target_of

if TYPE_CHECKING:
    from gateway.cli.checks import Check
    from gateway.cli.listing import Listing
    from gateway.cli.target import Target
    from schemas.errors import PunaError

_WHERE: Final = (
    "Start a fleet with `puna up`, or say where NATS is with --nats URL or NATS_URL.\n"
    "For a fleet that was started with --state-dir, set PUNA_STATE_DIR to that folder."
)
_EPILOG: Final = "Exit codes: " + " · ".join(f"{code} {meaning}" for code, meaning in MEANINGS.items())
_PASS_ON: Final[dict[str, Any]] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    help="Run llama.cpp on many machines as one OpenAI-compatible service.",
    epilog=_EPILOG,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_WRONG_USAGE: Final[Any] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "UsageError")
"""Click's error; typer carries a click of its own and has no public name for it."""


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code. All errors end here, as one line on stderr."""
    from schemas.errors import PunaError

    try:
        code = app(args=list(arguments), prog_name="puna", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flushes into nothing
        return FAILURE
    except (CliError, PunaError) as error:
        return _told(error)
    except _WRONG_USAGE as error:
        error.show()
        return USAGE


def _told(error: CliError | PunaError) -> int:
    from gateway.cli.exits import MISSING, code_of

    code = code_of(error)
    print(f"puna: {error.message}", file=sys.stderr)
    if code == MISSING and not isinstance(error, CliError):
        print(_WHERE, file=sys.stderr)
    return code


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="smollm2, PATH.gguf, hf://owner/repo[@rev][:quant][#file]; NAME= before it names it. May be repeated.",
            show_default="smollm2",
        ),
    ] = None,
    engine: Annotated[
        Path | None, typer.Option(help="The llama-server to use; else one that is found.", exists=True, dir_okay=False)
    ] = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Parallel answers of each worker.")] = 4,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one.")] = 8080,
    gateways: Annotated[
        int, typer.Option(min=1, max=16, help="Gateway processes; all but the first on free ports.")
    ] = 1,
    state_dir: Annotated[Path | None, typer.Option(help="Folder for state and logs.", file_okay=False)] = None,
    output: Annotated[
        str, typer.Option("-o", "--output", help="json: one line once all is ready.", metavar="FORMAT")
    ] = "table",
    no_watch: Annotated[bool, typer.Option("--no-watch", help="No live table.")] = False,
) -> int:
    """Start a whole fleet on this machine: nats-server, gateway, workers and a model, until Ctrl-C."""
    if output not in ("table", "json"):
        raise typer.BadParameter("use json, or leave it out", param_hint="'-o'")
    from gateway.cli.folders import default_state_dir
    from gateway.cli.say import Teller
    from gateway.cli.up import UpOptions
    from gateway.cli.up import up as run_up

    folder = (state_dir or default_state_dir()).expanduser().absolute()
    options = UpOptions(
        tuple(model or ("smollm2",)),
        engine and engine.absolute(),
        workers,
        slots,
        port,
        gateways,
        folder,
        output == "json",
        not no_watch,
    )
    return run_up(options, Teller())


@app.command(context_settings=_PASS_ON, add_help_option=False)
def worker() -> None:
    """Run a worker: the engines of this machine join a fleet. `puna worker --help` shows its options."""


@app.command("gateway", context_settings=_PASS_ON, add_help_option=False)
def gateway_service() -> None:
    """Run a gateway: an OpenAI-compatible address for a fleet. `puna gateway --help` shows its options."""


@app.command()
def ps(
    nats: Nats = None, gateway: Gateway = None, api_key: ApiKey = None, output: Output = "table", watch: Watch = False
) -> None:
    """Engines: where each runs, its state with the reason, its busy slots."""
    from gateway.cli.listing import ENGINES

    _list(ENGINES, target_of(nats, gateway, api_key), output, watch)


@app.command()
def nodes(
    nats: Nats = None, gateway: Gateway = None, api_key: ApiKey = None, output: Output = "table", watch: Watch = False
) -> None:
    """Nodes: hosts that run a worker, their devices and what they hold."""
    from gateway.cli.listing import NODES

    _list(NODES, target_of(nats, gateway, api_key), output, watch)


@app.command()
def ls(
    nats: Nats = None, gateway: Gateway = None, api_key: ApiKey = None, output: Output = "table", watch: Watch = False
) -> None:
    """Models: what clients can ask for, and who serves it."""
    from gateway.cli.listing import MODELS

    _list(MODELS, target_of(nats, gateway, api_key), output, watch)


@app.command("run")
def chat(
    model: Annotated[str, typer.Argument(help="The model's id; see `puna ls`.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="Without it: a conversation.")] = None,
    gateway: Gateway = None,
    api_key: ApiKey = None,
) -> None:
    """Chat with a model."""
    from gateway.cli.chat import once, talk
    from gateway.cli.httpclient import GatewayHttp

    target = target_of(None, gateway, api_key)
    client = GatewayHttp(target.gateway_url(), target.key())
    if prompt:
        once(client, model, " ".join(prompt))
    else:
        talk(client, model)


@app.command()
def doctor(nats: Nats = None, gateway: Gateway = None, api_key: ApiKey = None, output: Output = "table") -> int:
    """Look at everything that Puna needs, and say what to do where something is wrong."""
    import asyncio

    from gateway.cli.checks import doctor as run_doctor

    return _report(asyncio.run(run_doctor(target_of(nats, gateway, api_key))), output)


@app.command()
def status(nats: Nats = None, gateway: Gateway = None, api_key: ApiKey = None, output: Output = "table") -> int:
    """Is the fleet well? Ends with 1 if something is red."""
    import asyncio

    from gateway.cli.checks import check_fleet

    return _report(asyncio.run(check_fleet(target_of(nats, gateway, api_key))), output)


def _report(checks: list[Check], output: str) -> int:
    from gateway.cli.checks import exit_code
    from gateway.cli.tables import show

    data = [check.data() for check in checks]
    rows = [{**item, "state": item["result"]} for item in data]
    columns = ("state", "name", "found", "remedy")
    show(data, rows, columns, columns, format_of(output))
    return exit_code(checks)


def _list(listing: Listing, target: Target, output: str, watch: bool) -> None:
    import asyncio

    from gateway.cli.listing import run_listing
    from gateway.cli.say import Teller

    asyncio.run(run_listing(listing, target, format_of(output), watch=watch, tell=Teller().line))


commands.add_to(app)
modelcommands.add_to(app)
