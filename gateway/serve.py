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
    from gateway.auth import Keyring
    from gateway.settings import GatewaySettings

FAILURE: Final = 1
USAGE: Final = 2
MISSING: Final = 69
ORPHANED_GRACE_S: Final = 1.0
"""Grace of a gateway whose parent has gone: nobody looks after it any more."""
PARENT_CHECK_S: Final = 0.5

Config = Annotated[Path | None, typer.Option(help="YAML file with the settings.", exists=True, dir_okay=False)]
Nats = Annotated[str | None, typer.Option(help="NATS server, for example nats://127.0.0.1:4222.")]
Listen = Annotated[str | None, typer.Option(help="HOST:PORT; port 0 takes a free one.")]
KeysFile = Annotated[Path | None, typer.Option(help="File with API keys, one a line: name:key.")]
StateFile = Annotated[Path | None, typer.Option(help="File that gets the address once requests can be taken.")]
ParentPid = Annotated[int | None, typer.Option(help="End when this process ends.")]
LogFormat = Annotated[str | None, typer.Option(help="auto, json or pretty.")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]


def main() -> None:
    """Entry point of `puna-gateway`."""
    typer.run(serve)


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
    from gateway import logs

    logs.set_up(settings.log_level, settings.log_format)
    raise SystemExit(_run(settings, keyring, state_file, parent_pid))


def _prepared(config: Path | None, given: Mapping[str, Any]) -> tuple[GatewaySettings, Keyring]:
    from gateway.auth import BadKey, load_keys
    from schemas.config import ConfigError
    from schemas.errors import InvalidRequest

    try:
        settings = settings_from(config, os.environ, given)
        keyring = load_keys(settings.api_keys_file, [key.get_secret_value() for key in settings.api_keys])
    except (ConfigError, BadKey, InvalidRequest, OSError) as error:
        _give_up(str(error), USAGE)
    if not settings.loopback and not len(keyring):
        _give_up(_open_door(settings.listen), USAGE)
    return settings, keyring


def settings_from(config: Path | None, environ: Mapping[str, str], given: Mapping[str, Any]) -> GatewaySettings:
    """Command line over environment over file over defaults. Raises `ConfigError`, `InvalidRequest`, `OSError`."""
    from bus.settings import NatsSettings
    from gateway.settings import GatewaySettings
    from schemas.config import load

    text = config.read_text(encoding="utf-8") if config else ""
    nats = NatsSettings.from_env(environ).model_dump(exclude_unset=True)
    known = {f"PUNA_NATS__{name.upper()}": _plain(value) for name, value in nats.items()}
    source = str(config) if config else "the environment"
    return load(GatewaySettings, text=text, source=source, environ=known | dict(environ), overrides=given)


def _plain(value: Any) -> str:
    secret = getattr(value, "get_secret_value", None)
    return str(secret() if secret else value)


def _open_door(listen: str) -> str:
    return (
        f"{listen} can be reached by others, and no API key is set. Put keys into a file, one a line as 'name:key',\n"
        "and start with --api-keys-file FILE, or set PUNA_API_KEYS=KEY. Or listen on 127.0.0.1 only."
    )


def _give_up(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"puna-gateway: {message}\n")
    raise SystemExit(code)


def _run(settings: GatewaySettings, keyring: Keyring, state_file: Path | None, parent_pid: int | None) -> int:
    if sys.platform == "win32":
        return asyncio.run(_serve(settings, keyring, state_file, parent_pid))
    import uvloop

    return uvloop.run(_serve(settings, keyring, state_file, parent_pid))


async def _serve(settings: GatewaySettings, keyring: Keyring, state_file: Path | None, parent_pid: int | None) -> int:
    from gateway.app import Gateway
    from schemas.errors import PunaError

    ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    _end_on_signals(ended, settings.grace_s)
    gateway = Gateway(settings, keyring)
    try:
        host, port = await gateway.start()
    except PunaError as error:
        sys.stderr.write(f"puna-gateway: {error.message}\n")
        return MISSING
    except OSError as error:
        sys.stderr.write(f"puna-gateway: cannot listen on {settings.listen}: {error.strerror or error}\n")
        return FAILURE
    _announce(host, port, state_file)
    watcher = asyncio.create_task(_outlive(parent_pid, ended), name="parent-watch") if parent_pid else None
    grace_s = await ended
    await gateway.stop(grace_s)
    if watcher is not None:
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


def _announce(host: str, port: int, state_file: Path | None) -> None:
    import orjson

    shown = f"[{host}]" if ":" in host else host
    line = orjson.dumps({"url": f"http://{shown}:{port}", "host": host, "port": port, "pid": os.getpid()})
    if state_file is not None:
        fresh = state_file.with_name(f"{state_file.name}.{os.getpid()}")
        fresh.write_bytes(line + b"\n")
        fresh.replace(state_file)
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


async def _outlive(parent_pid: int, ended: asyncio.Future[float]) -> None:
    """End soon after the parent does."""
    import psutil

    try:
        parent = psutil.Process(parent_pid)
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110  it is no child of ours
            await asyncio.sleep(PARENT_CHECK_S)
    except psutil.NoSuchProcess:
        parent = None
    if not ended.done():
        ended.set_result(ORPHANED_GRACE_S)
