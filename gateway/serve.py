"""`puna-gateway`: settings out of file, environment and command line, then one gateway until a signal ends it.

Once requests can be taken, one JSON line goes to stdout (and into `--state-file`): `{"url", "host", "port", "pid"}`.
Logs go to stderr.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from gateway.settings import GatewaySettings
    from web.keys import Keyring

FAILURE: Final = 1
USAGE: Final = 2
MISSING: Final = 69
NOT_ALLOWED: Final = 4
ORPHANED_GRACE_S: Final = 1.0
"""Grace of a gateway whose parent has gone: nobody looks after it any more."""
STOP_ALLOWANCE_S: Final = 15.0
"""Beside the grace, what the service manager is told that an end may take."""

Config = Annotated[Path | None, typer.Option(help="YAML or TOML file with the settings.", exists=True, dir_okay=False)]
Nats = Annotated[str | None, typer.Option(help="NATS server, for example nats://127.0.0.1:4222.")]
Listen = Annotated[str | None, typer.Option(help="HOST:PORT; port 0 takes a free one.")]
KeysFile = Annotated[Path | None, typer.Option(help="File with API keys, one a line: name:key.")]
StateFile = Annotated[Path | None, typer.Option(help="File that gets the address once requests can be taken.")]
ParentPid = Annotated[int | None, typer.Option(help="End when this process ends.")]
LogFormat = Annotated[str | None, typer.Option(help="auto, json or pretty.")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]


def main() -> None:
    """Entry point of `puna-gateway`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)  # its tracebacks show secrets
    app.command()(serve)
    app()


def serve(
    config: Config = None,
    nats: Nats = None,
    listen: Listen = None,
    api_keys_file: KeysFile = None,
    state_file: StateFile = None,
    parent_pid: ParentPid = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Serve the fleet as one OpenAI-compatible address."""
    given = {
        "nats": {"url": nats},
        "listen": listen,
        "api_keys_file": api_keys_file,
        "log_format": log_format,
        "log_level": log_level,
    }
    settings, keyring = _prepared(config, given)
    from web import logs, program

    logs.set_up(settings.log_level, settings.log_format)
    raise SystemExit(program.run(_serve(settings, keyring, state_file, parent_pid)))


def _prepared(config: Path | None, given: Mapping[str, Any]) -> tuple[GatewaySettings, Keyring]:
    from schemas.config import ConfigError
    from schemas.errors import InvalidRequest
    from web.keys import BadKey, OpenDoor

    try:
        settings = settings_from(config, os.environ, given)
        return settings, settings.keys()
    except (ConfigError, BadKey, OpenDoor, InvalidRequest, OSError) as error:
        _give_up(str(error), USAGE)


def settings_from(config: Path | None, environ: Mapping[str, str], given: Mapping[str, Any]) -> GatewaySettings:
    """Command line over environment over file over defaults. Raises `ConfigError`, `InvalidRequest`, `OSError`."""
    from bus.settings import environment_of
    from gateway.settings import GatewaySettings
    from schemas.config import load

    text = config.read_text(encoding="utf-8") if config else ""
    source = str(config) if config else "the environment"
    environ = environment_of(environ) | dict(environ)
    return load(GatewaySettings, text=text, source=source, environ=environ, overrides=given)


def _give_up(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"puna-gateway: {message}\n")
    raise SystemExit(code)


async def _serve(settings: GatewaySettings, keyring: Keyring, state_file: Path | None, parent_pid: int | None) -> int:
    from bus.errors import BusDenied
    from gateway.app import Gateway
    from schemas.errors import PunaError
    from web.collector import settle_memory
    from web.notify import Notifier
    from web.program import announce

    notifier = Notifier.from_environ()
    ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    _end_on_signals(ended, settings.grace_s)
    gateway = Gateway(settings, keyring)
    try:
        host, port = await gateway.start()
        settle_memory()
    except PunaError as error:
        sys.stderr.write(f"puna-gateway: {error.message}\n")
        return NOT_ALLOWED if isinstance(error, BusDenied) else MISSING
    except OSError as error:
        sys.stderr.write(f"puna-gateway: cannot listen on {settings.listen}: {error.strerror or error}\n")
        return FAILURE
    shown = f"[{host}]" if ":" in host else host
    announce({"url": f"http://{shown}:{port}", "host": host, "port": port, "pid": os.getpid()}, state_file)
    notifier.ready()
    watchers = [asyncio.create_task(notifier.keep_alive(lambda: True), name="watchdog")]
    watchers += [asyncio.create_task(_outlive(parent_pid, ended), name="parent-watch")] if parent_pid else []
    grace_s = await ended
    notifier.stopping(grace_s + STOP_ALLOWANCE_S)
    await gateway.stop(grace_s)
    for watcher in watchers:
        watcher.cancel()
    return 0


def _end_on_signals(ended: asyncio.Future[float], grace_s: float) -> None:
    """The first signal begins the grace; a second one ends the process at once, as the system would."""
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        loop.remove_signal_handler(number)
        if not ended.done():
            ended.set_result(grace_s)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)


async def _outlive(parent_pid: int, ended: asyncio.Future[float]) -> None:
    """End soon after the parent does."""
    from web.program import outlived

    await outlived(parent_pid)
    if not ended.done():
        ended.set_result(ORPHANED_GRACE_S)
