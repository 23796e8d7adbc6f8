"""Composition root of a worker: the parts are built here, started in order, and drained in reverse."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from bus.connection import Bus
from bus.permissions import require_permissions
from bus.topology import ensure
from bus.watched import Tasks
from schemas import topology
from schemas.node import Device, Heartbeat, Pressure
from web import Limits, Server
from web.keys import Keyring as Keys
from worker.accelerators import discover
from worker.assignment import spec_of
from worker.control import Control, Reach
from worker.devices import Devices
from worker.engine import Engine
from worker.enginespec import EngineBinary
from worker.events import Events
from worker.heartbeat import HeartbeatMaker, Heartbeats
from worker.http import House, Pages
from worker.inbox import Inbox
from worker.loading import Loader
from worker.metrics import Metrics, Present
from worker.orphans import Notebook
from worker.ports import PortPool
from worker.pulse import Pulse
from worker.replies import Replies
from worker.serving import Serving
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

NATS_WAIT_S: Final = 30.0
"""How long a worker that starts waits for NATS."""
HTTP_GRACE_S: Final = 1.0
_BUS_JOIN_S: Final = 0.0


def fresh_id() -> str:
    """An id that nobody else has."""
    return secrets.token_hex(12)


class Node:
    """One worker. `ended` gets the reason when a part that must run has died, `leaving` is set when an operator asked
    it over NATS to drain and end."""

    def __init__(self, settings: WorkerSettings, keys: Keys, binary: EngineBinary | None) -> None:
        self.http_url: str | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.leaving = asyncio.Event()
        self._settings = settings
        self._keys = keys
        self._binary = binary
        self._clock = asyncio.get_running_loop().time
        self._tasks = Tasks(self._died)
        self._metrics = Metrics()
        self._stack = AsyncExitStack()
        self._engines: dict[str, Engine] = {}
        self._devices = Devices(())
        self._running = False

    # -- start -------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Until requests can be taken; engines may still be loading.

        Raises `BusUnavailable` (and `BusDenied`, which names what NATS does not allow), and
        `OSError` if the HTTP address cannot be had. What had started is stopped then.
        """
        async with AsyncExitStack() as stack:
            self._bus = await Bus.connect(
                self._settings.nats,
                name=f"puna-worker-{self._settings.node}",
                timeout_s=NATS_WAIT_S,
                join_s=_BUS_JOIN_S,
            )
            stack.push_async_callback(self._bus.close)
            publish, subscribe = self._bus.names.worker_needs(self._settings.node)
            await require_permissions(self._bus, publish=publish, subscribe=subscribe)
            await self._find_devices()
            await self._build()
            stack.push_async_callback(self._heartbeats.leave)
            stack.push_async_callback(self._tasks.stop)
            stack.push_async_callback(self._stop_engines)
            await self._listen(stack)
            self._stack = stack.pop_all()
        self._running = True
        self._events.tell("node_started", version=_version(), http=self.http_url)
        log.info("node_started", extra={"event": "node_started", "node": self._settings.node, "http": self.http_url})

    async def _find_devices(self) -> None:
        """In a thread: drivers and the engine's own list may take seconds."""
        argv = self._binary.argv if self._binary else ()
        self._devices = Devices(await asyncio.to_thread(discover, argv, self._settings.accelerators))
        await self._devices.read()

    async def _build(self) -> None:
        settings, bus = self._settings, self._bus
        self._events = Events(bus, settings.node)
        await asyncio.to_thread(Notebook(settings.state_folder / "engines").reap)
        self._make_engines()
        replies = self._replies = Replies(bus, settings.node, self._tasks, self._clock)
        self._serving = Serving(
            settings.node,
            bus,
            self._engines,
            replies=replies,
            tasks=self._tasks,
            metrics=self._metrics,
            clock=self._clock,
            on_change=self._changed,
        )
        self._metrics.add(Present(self._serving.slots, lambda: len(self._serving.waiting), lambda: bus.connected))
        self._maker = HeartbeatMaker(
            settings.node, fresh_id(), _version(), self._engines, self, labels=settings.labels, region=settings.region
        )
        self._heartbeats = Heartbeats(bus, self._maker.next, settings.node, self._metrics.heartbeats_failed.inc)
        leave = self.leaving.set
        reach = Reach(settings, self._engines, self._serving, self._maker.beat, self._tasks, leave)
        self._control = Control(bus, _version(), reach)
        self._inbox = Inbox(
            bus,
            settings.node,
            self._engines,
            self._serving,
            tasks=self._tasks,
            clock=self._clock,
            fresh_id=fresh_id,
            repair=self._ensure_topology,
        )
        self._pulse = Pulse(self._tick)
        bus.on_session(self._session)
        bus.on_session(self._ensure_topology)
        bus.on_session(self._heartbeats.session)

    def _make_engines(self) -> None:
        settings = self._settings
        ports = PortPool(*settings.engine.port_range, cooldown_s=settings.engine.port_cooldown_s)
        loader = Loader(
            settings.state_folder / "loads",
            self._read_devices,
            check=settings.memory_check,
            reserved_bytes=settings.reserved_memory_bytes,
        )
        for number, model in enumerate(settings.models if self._binary else ()):
            spec = spec_of(model, settings, self._devices.current, self._devices.accelerators)
            self._engines[model.model] = Engine(
                f"engine-{number}",
                spec,
                self._require_binary(),
                ports=ports,
                state_dir=settings.state_folder,
                settings=settings.engine,
                loader=loader,
                on_change=self._engine_changed,
            )

    async def _read_devices(self) -> tuple[Device, ...]:
        await self._devices.read()
        return self._devices.current

    def _require_binary(self) -> EngineBinary:
        if self._binary is None:
            raise RuntimeError("a node without an engine program has no engines")
        return self._binary

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Everything that lets requests in, the HTTP first: its address is in the first heartbeat."""
        settings = self._settings
        pages = Pages(self._house())
        server = Server(pages.handle, limits=Limits(body_bytes=settings.http.body_bytes))
        host, port = await server.start(*settings.http.address)
        stack.push_async_callback(server.stop, HTTP_GRACE_S)
        shown = f"[{host}]" if ":" in host else host
        self.http_url = self._maker.http = f"http://{shown}:{port}"
        for engine in self._engines.values():
            engine.want()
        self._pulse.start()
        stack.callback(self._pulse.stop)
        await self._control.start()
        stack.push_async_callback(self._control.stop)
        await self._inbox.start()
        stack.push_async_callback(self._inbox.stop)
        self._tasks.start_vital("heartbeats", self._heartbeats.run())
        self._tasks.start_vital("devices", self._devices.run())

    def _house(self) -> House:
        return House(
            serving=self._serving,
            beat=self._maker.beat,
            metrics=self._metrics,
            keys=self._keys,
            connected=lambda: self._bus.connected,
            lag_s=lambda: self._pulse.lag_s,
            clock=self._clock,
            fresh_id=fresh_id,
        )

    # -- what happens ------------------------------------------------------------------------------------------------
    async def _session(self) -> None:
        self._metrics.bus_sessions.inc()

    async def _ensure_topology(self) -> None:
        nats = self._settings.nats
        wanted = topology.fleet(self._bus.names, replicas=nats.replicas, queue_limit_requests=nats.queue_limit_requests)
        await ensure(self._bus, wanted)

    def _engine_changed(self, engine: Engine) -> None:
        self._events.engine(engine)
        if engine.state == "crashed":
            self._metrics.engine_failures.labels(engine.spec.model).inc()
        if engine.state == "ready":
            self._tasks.start(f"measure {engine.engine_id}", self._measure(engine))
        self._serving.refresh(engine.spec.model)

    async def _measure(self, engine: Engine) -> None:
        await engine.measure()
        self._heartbeats.changed()

    def _changed(self) -> None:
        if self._running:
            self._inbox.want()
        self._heartbeats.changed()

    def _tick(self, now: float) -> None:
        self._metrics.loop_lag.set(self._pulse.lag_s)
        self._replies.tick(now)
        self._serving.tick(now)

    def _died(self, task: str) -> None:
        log.critical("part_died", extra={"event": "part_died", "task": task})
        if not self.ended.done():
            self.ended.set_result(task)

    # -- what the heartbeat asks -------------------------------------------------------------------------------------
    def devices(self) -> tuple[Device, ...]:
        """Devices with their figures."""
        return self._devices.current

    def pressure(self) -> Pressure:
        """How much is going on."""
        return self._serving.pressure()

    def busy(self, model: str) -> int:
        """Slots of the model in use."""
        return self._serving.slots.busy(model)

    def beat(self) -> Heartbeat:
        """The heartbeat of now."""
        return self._maker.beat()

    # -- the end -----------------------------------------------------------------------------------------------------
    async def drain(self, limit_s: float) -> None:
        """Take nothing new, and let what runs end within `limit_s`."""
        self._maker.draining = True
        self._serving.close()
        await self._inbox.stop()
        self._heartbeats.changed()
        self._events.tell("node_draining", active=self._serving.active, limit_s=limit_s)
        log.info("node_draining", extra={"event": "node_draining", "active": self._serving.active, "limit_s": limit_s})
        try:
            async with asyncio.timeout(limit_s):
                await self._serving.idle.wait()
        except TimeoutError:
            log.warning("drain_limit", extra={"event": "drain_limit", "active": self._serving.active})

    async def stop(self) -> None:
        """End what still runs, leave the fleet, stop the engines. Safe to call twice."""
        if not self._running:
            return
        self._running = False
        self._serving.close()
        await self._inbox.stop()
        self._serving.abandon_all()
        await self._replies.drained()
        await self._stack.aclose()
        log.info("node_stopped", extra={"event": "node_stopped", "node": self._settings.node})

    async def _stop_engines(self) -> None:
        await asyncio.gather(*(engine.stop() for engine in self._engines.values()))


def _version() -> str:
    try:
        return version("puna")
    except PackageNotFoundError:
        return "0.0.0+checkout"
