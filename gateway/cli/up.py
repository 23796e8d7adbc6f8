"""`puna up`: nats-server, gateways and workers of one machine as one program, from nothing to a fleet that answers.

Order: state folder, port, model (all that can be wrong is said before anything runs), nats-server, then gateways and
workers together. The children are ours alone: they end when this process ends, however it does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bus.connection import Bus
from bus.kv import Bucket, Follower
from bus.settings import NatsSettings
from bus.topology import ensure
from gateway.cli.children import Child, Children
from gateway.cli.exits import INTERRUPTED, OK, CliError
from gateway.cli.httpclient import GatewayHttp
from gateway.cli.model import LocalModel, local_models
from gateway.cli.nats_server import NatsServer, find_nats_server, prepare
from gateway.cli.nodes import from_snapshot
from gateway.cli.ports import check_free, free_port
from gateway.cli.running import only_one, write_record
from gateway.cli.say import Teller
from gateway.cli.service import service_command, service_environment
from gateway.cli.upshow import Show
from gateway.cli.upview import Facts, all_ready, banner, facts_json, fleet_rows
from gateway.cli.workers import WorkerOptions, worker_command, write_settings
from schemas.node import Heartbeat
from schemas.topology import fleet as fleet_topology

_NATS_START_S: Final = 20.0
_GATEWAY_ASK_S: Final = 0.1
_CRASHES_LIMIT: Final = 3
"""An engine that crashes this often before it was ever ready will not get ready."""
_DROPPED: Final = ("NATS_", "PUNA_NATS__", "PUNA_MODELS")


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What was asked for. `engine` None: the workers look for one."""

    models: tuple[str, ...]
    """The first one is started at once; the others too where they fit beside it, else when they are asked for."""
    engine: Path | None
    workers: int
    slots: int
    port: int
    gateways: int
    state_dir: Path
    as_json: bool
    watch: bool


def up(options: UpOptions, teller: Teller) -> int:
    """Run a fleet until Ctrl-C. Returns the exit code; raises `CliError`."""
    with only_one(options.state_dir):
        program = find_nats_server()
        ports = [check_free(options.port) if options.port else free_port()]
        ports += [free_port() for _ in range(options.gateways - 1)]
        models = local_models(options.models, teller)
        server = prepare(program, options.state_dir, free_port())
        _log_to(options.state_dir / "logs" / "up.log")
        return asyncio.run(_Up(options, teller, models, server, ports).run())


def _log_to(path: Path) -> None:
    """Our own log, that of our NATS connection, is a file like the children's: the terminal is for the person."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=path, filemode="w", format="%(asctime)s %(levelname)s %(name)s %(message)s")


def child_environment(nats_url: str) -> dict[str, str]:
    """The environment of gateways and workers. The NATS URL holds a password: it is not for the command line, which
    every user of the machine can read. Whatever else the environment says of NATS and of models is for other fleets."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    return service_environment(kept) | {"NATS_URL": nats_url, "PYTHONUNBUFFERED": "1"}


class _Up:
    def __init__(
        self, options: UpOptions, teller: Teller, models: tuple[LocalModel, ...], server: NatsServer, ports: list[int]
    ) -> None:
        self._options, self._teller, self._model = options, teller, models[0]
        self._nodes: list[Heartbeat] = []
        self._seen: set[str] = set()
        self._crashes: dict[str, int] = {}
        self._recorded: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._stop = asyncio.Event()
        logs = options.state_dir / "logs"
        environment = child_environment(server.url)
        common = WorkerOptions(models, options.slots, options.engine, options.state_dir)
        settings = write_settings(common)
        self._facts = Facts(
            model=models[0].model,
            nats=server.url,
            nats_server=Child("nats-server", server.command, os.environ, logs / "nats-server.log", server.port),
            gateways={
                f"http://127.0.0.1:{port}": Child(
                    f"gateway-{number}", _gateway_command(port), environment, logs / f"gateway-{number}.log", port
                )
                for number, port in enumerate(ports, 1)
            },
            workers=[
                Child(name, worker_command(name, settings, common), environment, logs / f"{name}.log")
                for name in (f"worker-{number}" for number in range(1, options.workers + 1))
            ],
            state_dir=options.state_dir,
        )

    async def run(self) -> int:
        """Start, show, and end all in order."""
        self._children = Children(self._child_changed)
        self._listen_to_signals()
        facts = self._facts
        try:
            async with AsyncExitStack() as stack:
                ready = await self._or_stopped(self._start(stack))
                if not ready:
                    return INTERRUPTED
                self._children.settled()
                self._announce()
                await self._show()
                self._teller.line("ending the fleet")
                return OK
        finally:
            await self._children.stop((*facts.gateways.values(), *facts.workers), (facts.nats_server,))

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._asked_to_stop)

    def _asked_to_stop(self) -> None:
        if self._stop.is_set():
            self._children.kill()
        self._stop.set()

    async def _or_stopped(self, start: Coroutine[Any, Any, None]) -> bool:
        """Run the start; False if it was interrupted. Raises what broke it."""
        starting = asyncio.create_task(start, name="start")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait((starting, stop, self._children.broken), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            if self._children.broken.done():
                raise self._children.broken.result()
            return False
        starting.result()
        return True

    async def _start(self, stack: AsyncExitStack) -> None:
        facts = self._facts
        self._teller.line("starting nats-server")
        await self._children.start(facts.nats_server)
        bus = await Bus.connect(_settings(facts.nats), name="puna-up", timeout_s=_NATS_START_S)
        stack.push_async_callback(bus.close)
        await ensure(bus, fleet_topology(bus.names))
        follower = Follower(Bucket(bus, bus.names.bucket_nodes), lambda entries: self._heard(from_snapshot(entries)))
        await follower.start()
        stack.push_async_callback(follower.stop)
        self._teller.line(
            f"starting {_count(len(facts.gateways), 'gateway')} and {_count(len(facts.workers), 'worker')}"
        )
        for child in (*facts.gateways.values(), *facts.workers):
            await self._children.start(child)
        await self._engines_ready()
        await asyncio.gather(*(self._gateway_ready(url) for url in facts.gateways))

    def _heard(self, nodes: list[Heartbeat]) -> None:
        self._nodes = nodes
        self._seen |= {node.node for node in nodes}
        self._changed.set()

    def _child_changed(self, _child: Child, text: str) -> None:
        self._teller.line(text)
        self._changed.set()

    async def _engines_ready(self) -> None:
        told: dict[str, str] = {}
        while not all_ready(self._nodes, self._facts.workers, self._model.model):
            await self._changed.wait()
            self._changed.clear()
            for node in self._nodes:
                for engine in node.engines:
                    text = f"{node.node}: {engine.model} is {engine.state}" + (
                        f": {engine.reason}" if engine.reason else ""
                    )
                    if told.get(f"{node.node} {engine.engine}") != text:
                        told[f"{node.node} {engine.engine}"] = text
                        self._teller.line(text)
                        self._count_crash(node.node, engine.state, engine.reason)

    def _count_crash(self, node: str, state: str, reason: str | None) -> None:
        if state != "crashed":
            return
        self._crashes[node] = self._crashes.get(node, 0) + 1
        if self._crashes[node] >= _CRASHES_LIMIT:
            log = self._options.state_dir / "logs" / f"{node}.log"
            raise CliError(f"the engine of {node} does not get ready ({reason}); its log is {log}")

    async def _gateway_ready(self, url: str) -> None:
        """Until the gateway lists the model: it sees the fleet. One that wants a key is asked only if it is ready."""
        gateway = GatewayHttp(url, os.environ.get("PUNA_API_KEY"))
        while True:
            status = await asyncio.to_thread(gateway.status, "/v1/models")
            listed = status == 401 or (status == 200 and await asyncio.to_thread(_lists, gateway, self._model.model))
            if listed and await asyncio.to_thread(gateway.status, "/readyz") == 200:
                return
            await asyncio.sleep(_GATEWAY_ASK_S)

    def _announce(self) -> None:
        record = self._record()
        print(json.dumps(record) if self._options.as_json else banner(self._facts), flush=True)

    def _record(self) -> dict[str, Any]:
        record = facts_json(self._facts, self._nodes)
        if record != self._recorded:
            write_record(self._options.state_dir, record)
            self._recorded = record
        return record

    async def _show(self) -> None:
        """Until told to stop: the live table, or its changes as lines, or nothing but the record kept true."""
        quiet = self._options.as_json or not self._options.watch
        with Show(self._teller, quiet=quiet) as show:
            while not self._stop.is_set():
                self._changed.clear()
                show.rows(fleet_rows(self._nodes, self._facts.workers, self._seen, time.time()))
                self._record()
                await self._next_change()

    async def _next_change(self) -> None:
        waits = [asyncio.create_task(event.wait()) for event in (self._changed, self._stop)]
        await asyncio.wait((*waits, self._children.broken), timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        if self._children.broken.done():
            raise self._children.broken.result()


def _gateway_command(port: int) -> list[str]:
    return service_command("gateway", ["--listen", f"127.0.0.1:{port}", "--parent-pid", str(os.getpid())])


def _settings(url: str) -> NatsSettings:
    return NatsSettings.from_env({"PUNA_PREFIX": os.environ.get("PUNA_PREFIX", "")}, url=url)


def _lists(gateway: GatewayHttp, model: str) -> bool:
    try:
        return any(item["id"] == model for item in gateway.get("/v1/models")["data"])
    except CliError:
        return False


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")
