"""`puna-worker`: settings out of file, environment and command line, then one worker until a signal ends it.

Once requests can be taken, one JSON line goes to stdout: `{"node", "pid", "http"}`. Logs go to stderr.
The first SIGTERM or SIGINT drains: running requests may end. A second one ends them. SIGUSR2 drains too, and leaves
the engines to the worker that comes next (an upgrade), as a worker does that ends because a part of it died.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from schemas.aliases import Aliases
    from web.keys import Keyring
    from worker.enginespec import EngineBinary
    from worker.node import Node
    from worker.settings import WorkerSettings
    from worker.storedsettings import Again

FAILURE: Final = 1
USAGE: Final = 2
MISSING: Final = 69
NOT_ALLOWED: Final = 4
ORPHANED_DRAIN_S: Final = 0.0
"""Grace of a worker whose parent has gone: nobody looks after it any more."""
STOP_ALLOWANCE_S: Final = 30.0
"""Beside the drain, what the service manager is told that an end may take."""

Config = Annotated[Path | None, typer.Option(help="YAML or TOML file with the settings.", exists=True, dir_okay=False)]
Nats = Annotated[str | None, typer.Option(help="NATS server, for example nats://127.0.0.1:4222.")]
NodeId = Annotated[str | None, typer.Option(help="This node's id; NODE_NAME or the host's name if not given.")]
Model = Annotated[list[str] | None, typer.Option(help="NAME=PATH of a GGUF file to serve; may be repeated.")]
Slots = Annotated[int | None, typer.Option(help="Requests at the same time, of each model.")]
Http = Annotated[str | None, typer.Option(help="HOST:PORT of the worker's own HTTP; port 0 takes a free one.")]
StateDir = Annotated[Path | None, typer.Option(help="Folder for what must outlive the process.")]
EnginePath = Annotated[Path | None, typer.Option(help="The llama-server to use.")]
ParentPid = Annotated[int | None, typer.Option(help="End when this process ends.")]
LogFormat = Annotated[str | None, typer.Option(help="auto, json or pretty.")]
LogLevel = Annotated[str | None, typer.Option(help="debug, info, warning or error.")]


def main() -> None:
    """Entry point of `puna-worker`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)  # its tracebacks show secrets
    app.command()(work)
    app()


def work(
    config: Config = None,
    nats: Nats = None,
    node: NodeId = None,
    model: Model = None,
    slots: Slots = None,
    http: Http = None,
    state_dir: StateDir = None,
    engine: EnginePath = None,
    parent_pid: ParentPid = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Join this machine's engines to a fleet."""
    given: dict[str, Any] = {
        "nats": {"url": nats},
        "node": node,
        "slots": slots,
        "http": {"listen": http},
        "state_dir": state_dir,
        "engine": {"path": engine},
        "log": {"format": log_format, "level": log_level},
    }
    from worker.aliases import aliases

    settings, keys = _prepared(config, given, model, names := aliases())
    from web import logs, program

    logs.set_up(settings.log.level, settings.log.format)
    _tell_idle(names)

    def again(stored: Mapping[str, Any]) -> WorkerSettings:
        from worker.settings import settings_from

        return settings_from(config, os.environ, given, aliases(), stored)

    raise SystemExit(program.run(_serve(settings, keys, parent_pid, again)))


def _tell_idle(names: Aliases) -> None:
    """Settings that were given and do nothing, each with the reason."""
    for name, reason in names.met_idle.items():
        facts = {"event": "setting_without_effect", "setting": name, "reason": reason}
        logging.getLogger(__name__).info("setting_without_effect", extra=facts)


def _prepared(
    config: Path | None, given: dict[str, Any], models: list[str] | None, names: Aliases
) -> tuple[WorkerSettings, Keyring]:
    from schemas.config import ConfigError
    from schemas.errors import InvalidRequest
    from worker.settings import model_argument, settings_from

    try:
        if models:
            given["models"] = [model_argument(text) for text in models]
        settings = settings_from(config, os.environ, given, names)
        return settings, settings.http.keys()
    except (ConfigError, ValueError, InvalidRequest, OSError) as error:
        _give_up(str(error), USAGE)


async def _found_engine(settings: WorkerSettings) -> EngineBinary | None:
    """The engine program. Where the settings name no model a node may be without: it keeps files, and says so. Raises
    `Unavailable`, which says how to get one."""
    from worker.finder import EngineMissing, find_engine

    try:
        return await find_engine(settings.engine.path, os.environ)
    except EngineMissing as missing:
        if settings.models or settings.engine.path is not None:
            raise
        fields = {"event": "engine_absent", "reason": missing.message}
        logging.getLogger(__name__).warning("no engine: models are kept, none is served", extra=fields)
        return None


def _give_up(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"puna-worker: {message}\n")
    raise SystemExit(code)


async def _serve(settings: WorkerSettings, keys: Keyring, parent_pid: int | None, again: Again) -> int:
    from bus.errors import BusDenied
    from schemas.errors import PunaError
    from web import logs
    from web.collector import settle_memory
    from web.notify import Notifier
    from web.program import announce
    from worker.node import Node
    from worker.storedsettings import with_stored

    ends, notifier = _Ends(settings.drain_s), Notifier.from_environ()
    try:
        settings = await with_stored(settings, again)
        logs.set_up(settings.log.level, settings.log.format)
        ends.drain_s = settings.drain_s
        node = Node(settings, keys, await _found_engine(settings))
        await node.start()
        settle_memory()
    except PunaError as error:
        sys.stderr.write(f"puna-worker: {error.message}\n")
        return NOT_ALLOWED if isinstance(error, BusDenied) else MISSING
    except OSError as error:
        sys.stderr.write(f"puna-worker: cannot listen on {settings.http.listen}: {error.strerror or error}\n")
        return FAILURE
    announce({"node": settings.node, "pid": os.getpid(), "http": node.http_url})
    notifier.ready()
    watchers = [asyncio.create_task(notifier.keep_alive(lambda: node.lives), name="watchdog")]
    watchers += [asyncio.create_task(_outlive(parent_pid, ends), name="parent watch")] if parent_pid else []
    died = await ends.first(node)
    notifier.stopping(ends.drain_s + STOP_ALLOWANCE_S)
    await ends.unless_again(node.drain(ends.drain_s))
    await node.stop(leave_engines=died or ends.handing_over)
    for watcher in watchers:
        watcher.cancel()
    return FAILURE if died else 0


class _Ends:
    """The ways to the end: a signal, a second one, the verb `drain`, a parent that is gone, a part that died."""

    def __init__(self, drain_s: float) -> None:
        self.drain_s = drain_s
        self._asked = asyncio.Event()
        self._again = asyncio.Event()
        loop = asyncio.get_running_loop()
        self.handing_over = False
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signal)
        loop.add_signal_handler(signal.SIGUSR2, self._hand_over)

    def _hand_over(self) -> None:
        self.handing_over = True
        self._asked.set()

    def _signal(self) -> None:
        if self._asked.is_set():
            self._again.set()
        self._asked.set()

    def orphaned(self) -> None:
        """The parent is gone."""
        self.drain_s = ORPHANED_DRAIN_S
        self._signal()

    async def first(self, node: Node) -> bool:
        """Until it is time to end; whether that is because something died."""
        asked, leaving = asyncio.ensure_future(self._asked.wait()), asyncio.ensure_future(node.leaving.wait())
        await asyncio.wait([asked, leaving, node.ended], return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        leaving.cancel()
        return node.ended.done()

    async def unless_again(self, work: Any) -> None:
        """Await `work`, but no longer than until the second signal."""
        again, running = asyncio.ensure_future(self._again.wait()), asyncio.ensure_future(work)
        await asyncio.wait([again, running], return_when=asyncio.FIRST_COMPLETED)
        again.cancel()
        running.cancel()
        await asyncio.wait([again, running])


async def _outlive(parent_pid: int, ends: _Ends) -> None:
    """End soon after the parent does."""
    from web.program import outlived

    await outlived(parent_pid)
    ends.orphaned()
