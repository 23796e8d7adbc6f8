"""Composition root of a worker: the parts are built here, started in order, and drained in reverse."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Final

from bus.connection import Bus
from bus.kv import Bucket
from bus.permissions import require_permissions
from bus.topology import ensure
from bus.watched import Tasks
from schemas import topology
from schemas.errors import PunaError
from web import Limits, Server
from web.headers import fresh_id
from web.keys import Keyring as Keys
from worker.accelerators import chosen
from worker.adoption import adoptable
from worker.backend import Backend, Processes
from worker.building import InUse, build_keeper, build_serving
from worker.confines import Confines
from worker.devices import Devices
from worker.engine import Engine
from worker.enginespec import EngineBinary
from worker.events import Events
from worker.health import Health, Vital
from worker.http import House, Pages
from worker.inbox import Inbox
from worker.library import Library
from worker.metrics import Metrics
from worker.pulse import Pulse
from worker.replies import Replies
from worker.settings import WorkerSettings
from worker.surroundings import Surroundings, puna_version
from worker.telling import Telling

log = logging.getLogger(__name__)

NATS_WAIT_S: Final = 30.0
"""How long a worker that starts waits for NATS."""
HTTP_GRACE_S: Final = 1.0
BEGIN_WAIT_S: Final = 2.0
"""How long the start waits for the models' files to be read; on a disk that hangs it goes on without."""
_BUS_JOIN_S: Final = 0.0


class Node:
    """One worker. `ended` gets the reason when a part that must run has died, `leaving` is set when an operator asked
    it over NATS to drain and end."""

    def __init__(
        self, settings: WorkerSettings, keys: Keys, binary: EngineBinary | None, backend: Backend | None = None
    ) -> None:
        self.http_url: str | None = None
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.leaving = asyncio.Event()
        self._settings = settings
        self._keys = keys
        self._binary = binary
        self._backend = backend or Processes()
        self._clock = asyncio.get_running_loop().time
        self._tasks = Tasks(self._died)
        self._metrics = Metrics()
        self._stack = AsyncExitStack()
        self._devices = Devices(())
        self._confines = Confines(settings)
        self._running = False
        self._leave_engines = self._stopping = False

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
            await self._stand()
            stack.callback(self._left)
            stack.push_async_callback(self._heartbeats.leave)
            stack.push_async_callback(self._tasks.stop)
            stack.push_async_callback(self._stop_engines)
            await self._listen(stack)
            self._stack = stack.pop_all()
        self._running = True
        self._events.tell("node_started", version=puna_version(), http=self.http_url)
        log.info("node_started", extra={"event": "node_started", "node": self._settings.node, "http": self.http_url})

    async def _find_devices(self) -> None:
        """In a thread: drivers and the engine's own list may take seconds."""
        argv = self._binary.argv if self._binary else ()
        found = await asyncio.to_thread(self._backend.discover, argv, self._settings.accelerators)
        self._devices = Devices(chosen(found, self._settings.devices))
        await self._devices.read()
        here = {name for each in self._devices.current for name in (each.device, each.parent)}
        for name in self._settings.devices:
            if name not in here:
                log.warning("device_unknown", extra={"event": "device_unknown", "device": name})

    async def _build(self) -> None:
        settings, bus = self._settings, self._bus
        self._events = Events(bus, settings.node, self._metrics.told)
        self._found = await asyncio.to_thread(adoptable, settings.state_folder)
        await asyncio.to_thread(self._confines.begin, [each.engine_id for each in self._found])
        self._replies = Replies(bus, settings.node, self._tasks, self._clock)
        here = self._surroundings()
        in_use = InUse()
        self._keeper = build_keeper(here, in_use, self._engine_changed, self._offers_changed)
        self._serving = in_use.serving = build_serving(here, self._keeper, self._replies, self._changed)
        self._library = Library(
            here, self._keeper, labels=settings.own_labels(), changed=self._copies_changed, repair=self._ensure_topology
        )
        self._telling = Telling(
            here,
            self._keeper,
            self._serving,
            boot_id=fresh_id(),
            leave=self._leave,
            library=self._library,
            health=lambda: self._health,
        )
        self._maker, self._heartbeats = self._telling.maker, self._telling.heartbeats
        self._inbox = Inbox(
            bus,
            settings.node,
            self._serving,
            tasks=self._tasks,
            clock=self._clock,
            fresh_id=fresh_id,
            repair=self._ensure_topology,
        )
        self._pulse = Pulse(self._tick)
        self._health = Health(self._vital())
        bus.on_session(self._session)
        bus.on_session(self._ensure_topology)
        bus.on_session(self._heartbeats.session)
        bus.on_session(self._library.news.session)

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            settings=self._settings,
            bus=self._bus,
            events=self._events,
            devices=self._devices,
            confines=self._confines,
            binary=self._binary,
            launch=self._backend.launch,
            metrics=self._metrics,
            tasks=self._tasks,
            clock=self._clock,
        )

    async def _listen(self, stack: AsyncExitStack) -> None:
        """Everything that lets requests in, the HTTP first: its address is in the first heartbeat."""
        settings = self._settings
        pages = Pages(self._house())
        server = Server(pages.handle, limits=Limits(body_bytes=settings.http.body_bytes))
        host, port = await server.start(*settings.http.address)
        stack.push_async_callback(server.stop, HTTP_GRACE_S)
        shown = f"[{host}]" if ":" in host else host
        self.http_url = self._maker.http = f"http://{shown}:{port}"
        await self._library.peers.listens(host, port)
        await self._begin()
        self._pulse.start()
        stack.callback(self._pulse.stop)
        await self._telling.start(stack)
        await self._inbox.start()
        stack.push_async_callback(self._inbox.stop)
        await self._library.start()
        stack.push_async_callback(self._library.stop)
        self._tasks.start_vital("health", self._health.run())

    async def _begin(self) -> None:
        """The engines that are to be there from the start."""
        begun = self._tasks.start("begin", self._keeper.begin(self._found))
        await asyncio.wait({begun}, timeout=BEGIN_WAIT_S)

    def _vital(self) -> Vital:
        copies = Bucket(self._bus, self._bus.names.bucket_copies)

        async def ask_bus() -> None:
            await copies.get("health")

        return Vital(
            shelves=self._library.shelf,
            beat=self._maker.beat,
            connected=lambda: self._bus.connected,
            ask_bus=ask_bus,
            lag_s=lambda: self._pulse.lag_s,
            dead=lambda: self.ended.result() if self.ended.done() and not self.ended.cancelled() else None,
            memory_limit_bytes=self._settings.live_memory_limit_bytes,
        )

    def _house(self) -> House:
        return House(
            serving=self._serving,
            beat=self._maker.beat,
            metrics=self._metrics,
            keys=self._keys,
            health=self._health,
            clock=self._clock,
            fresh_id=fresh_id,
            models=self._telling.models,
            blobs=self._library.peers.page,
        )

    @property
    def lives(self) -> bool:
        """Nothing is wrong that only a new process mends."""
        return all(check.reason is None for check in self._health.live())

    # -- what happens ------------------------------------------------------------------------------------------------
    async def _session(self) -> None:
        self._metrics.bus_sessions.inc()

    async def _stand(self) -> None:
        """Streams and buckets are there before anybody is told that this node is: a task that is typed at once must not
        be lost. Should the server not answer now, each session makes them again."""
        try:
            await asyncio.wait_for(self._ensure_topology(), BEGIN_WAIT_S)
        except (PunaError, TimeoutError) as error:
            log.warning("topology_late", extra={"event": "topology_late", "error": str(error)})

    async def _ensure_topology(self) -> None:
        nats = self._settings.nats
        wanted = topology.fleet(self._bus.names, replicas=nats.replicas, queue_limit_requests=nats.queue_limit_requests)
        await ensure(self._bus, wanted)

    def _engine_changed(self, engine: Engine) -> None:
        self._events.engine(engine)
        self._metrics.engine_changed(engine)
        if self._running or engine.engine_id in self._keeper.engines:
            self._serving.engine_changed(engine)
        self._heartbeats.changed()

    def _copies_changed(self) -> None:
        self._heartbeats.changed()

    def _offers_changed(self) -> None:
        self._heartbeats.changed()

    def _changed(self, model: str) -> None:
        if self._running:
            self._inbox.want_for(model)
        self._keeper.stir()
        self._heartbeats.changed()

    def _tick(self, now: float) -> None:
        self._metrics.loop_lag.set(self._pulse.lag_s)
        self._replies.tick(now)
        self._serving.tick(now)
        self._inbox.tick(now)
        self._keeper.tick(now)

    def _died(self, task: str) -> None:
        log.critical("part_died", extra={"event": "part_died", "task": task})
        if not self.ended.done():
            self.ended.set_result(task)

    # -- the end -----------------------------------------------------------------------------------------------------
    def _leave(self) -> None:
        """An operator asked: from here on nothing new is taken, whenever the drain itself begins."""
        self._take_nothing()
        self.leaving.set()

    def _take_nothing(self) -> None:
        self._maker.draining = True
        self._keeper.close()
        self._serving.close()
        self._library.close()

    async def drain(self, limit_s: float) -> None:
        """Take nothing new, and let what runs end within `limit_s`."""
        self._take_nothing()
        await self._inbox.stop()
        self._heartbeats.changed()
        self._events.tell("node_draining", active=self._serving.active, limit_s=limit_s)
        log.info("node_draining", extra={"event": "node_draining", "active": self._serving.active, "limit_s": limit_s})
        try:
            async with asyncio.timeout(limit_s):
                await self._serving.idle.wait()
        except TimeoutError:
            log.warning("drain_limit", extra={"event": "drain_limit", "active": self._serving.active})

    async def stop(self, *, leave_engines: bool = False) -> None:
        """End what still runs, leave the fleet, stop the engines or leave them to the next worker. Safe to call
        twice."""
        if not self._running:
            return
        self._running, self._stopping = False, True
        self._leave_engines = leave_engines
        self._serving.close()
        await self._inbox.stop()
        self._serving.abandon_all()
        await self._replies.drained()
        await self._stack.aclose()
        log.info("node_stopped", extra={"event": "node_stopped", "node": self._settings.node})

    def _left(self) -> None:
        """The last word, once the heartbeat is gone."""
        if self._stopping:
            self._events.tell("node_stopped", engines_left=self._leave_engines)

    async def _stop_engines(self) -> None:
        await self._keeper.stop(leave=self._leave_engines)
