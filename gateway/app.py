"""The gateway's parts, built in one place: started in order, stopped in reverse."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from functools import partial

from bus.connection import Bus
from bus.permissions import require_permissions
from bus.topology import ensure
from bus.watched import Tasks
from gateway.agents import Agents
from gateway.cors import Cors
from gateway.inference import Inference
from gateway.metrics import Metrics
from gateway.modelevents import ModelEvents
from gateway.modelpages import ModelPages
from gateway.nodes import Queue
from gateway.ondisk import OnDisk
from gateway.routes import House, Routes
from gateway.settings import GatewaySettings
from gateway.shelfwatch import ShelfWatch
from gateway.view import Moment, View
from gateway.watch import FleetWatch
from schemas.topology import fleet as fleet_topology
from web import Limits, Server
from web.keys import Keyring

log = logging.getLogger(__name__)


class Gateway:
    """One gateway process. `start` returns once requests can be taken."""

    def __init__(self, settings: GatewaySettings, keyring: Keyring) -> None:
        self._settings = settings
        self._keyring = keyring
        self._stack = AsyncExitStack()
        self._stopping = False
        self._grace_s = settings.grace_s

    async def start(self) -> tuple[str, int]:
        """Connect, learn the fleet, listen. Returns the address in use.

        Raises `BusUnavailable` if NATS cannot be reached, `BusDenied` if it does not allow what is needed, and
        `OSError` if the address is taken.
        """
        try:
            return await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def _start(self) -> tuple[str, int]:
        settings, stack = self._settings, self._stack
        bus = await Bus.connect(settings.nats, name="puna-gateway")
        stack.push_async_callback(bus.close)
        publish, subscribe = bus.names.gateway_needs("*")
        await require_permissions(bus, publish=publish, subscribe=subscribe)
        await self._ensure(bus)
        repair = partial(self._ensure, bus)
        bus.on_session(repair)
        watch = FleetWatch(bus, repair)
        stack.push_async_callback(watch.stop)
        await watch.start()
        disks = ShelfWatch(bus, repair)
        stack.push_async_callback(disks.stop)
        await disks.start()
        metrics, tasks = Metrics(), Tasks()
        stack.push_async_callback(tasks.stop)
        clock = asyncio.get_running_loop().time

        def view() -> Moment:
            return Moment(watch.fleet, disks.shelf, clock())

        def look_up(model: str) -> OnDisk | None:
            return Moment(watch.fleet, disks.newest(), clock()).disk(model)

        inference = Inference(bus, settings, lambda: watch.fleet, metrics, look_up)
        stack.push_async_callback(inference.stop)
        inference.start()
        self._watch_gauges(metrics, bus, watch, inference)
        metrics.watch("records_rejected", "Values that were no record of a model.", lambda: disks.rejected_total)
        events = ModelEvents(view, settings.keep_alive_s)
        routes = Routes(self._house(bus, view, inference, metrics, tasks, events))
        limits = Limits(body_bytes=settings.body_bytes, connections=settings.connections)
        server = Server(routes.handle, limits=limits, refusal_headers=routes.headers)
        stack.push_async_callback(self._close_server, server, inference, events)
        host, port = await server.start(*settings.address)
        log.info("listening", extra={"event": "listening", "host": host, "port": port, "gateway": inference.gateway})
        return host, port

    async def stop(self, grace_s: float | None = None) -> None:
        """Take no more, let streams end within the grace, then end them with an error. Safe to call twice."""
        self._stopping = True
        if grace_s is not None:
            self._grace_s = grace_s
        await self._stack.aclose()

    async def _close_server(self, server: Server, inference: Inference, events: ModelEvents) -> None:
        """In the last part of the grace what still runs is told why it ends, before its connection is cut."""
        events.stop()
        closing = asyncio.ensure_future(server.stop(self._grace_s + 1.0))
        done, _ = await asyncio.wait({closing}, timeout=self._grace_s)
        if not done:
            await inference.stop()
        await closing

    async def _ensure(self, bus: Bus) -> None:
        nats = self._settings.nats
        wanted = fleet_topology(bus.names, replicas=nats.replicas, queue_limit_requests=nats.queue_limit_requests)
        await ensure(bus, wanted)

    def _house(
        self,
        bus: Bus,
        view: View,
        inference: Inference,
        metrics: Metrics,
        tasks: Tasks,
        events: ModelEvents,
    ) -> House:
        limit = self._settings.nats.queue_limit_requests
        return House(
            inference=inference,
            fleet=lambda: view().fleet,
            view=view,
            queue=Queue(bus, lambda: view().fleet, limit),
            models=ModelPages(bus, view, frozenset(self._settings.fetch_schemes)),
            events=events,
            agents=Agents(bus),
            metrics=metrics,
            keyring=self._keyring,
            cors=Cors(self._settings.cors_origins),
            tasks=tasks,
            clock=asyncio.get_running_loop().time,
            later=asyncio.get_running_loop().call_later,
            connected=lambda: bus.connected,
            stopping=lambda: self._stopping,
            request_timeout_s=self._settings.request_timeout_s,
            metrics_open=self._settings.metrics_open,
        )

    def _watch_gauges(self, metrics: Metrics, bus: Bus, watch: FleetWatch, inference: Inference) -> None:
        metrics.watch("requests_active", "Requests in flight.", lambda: inference.active)
        metrics.watch("requests_waiting", "Of those, in a line.", lambda: sum(inference.waiting().values()))
        metrics.watch("bus_connected", "1 while NATS is there.", lambda: float(bus.connected))
        metrics.watch("bus_sessions", "Sessions with NATS since the start.", lambda: bus.session)
        metrics.watch("nodes", "Nodes that live.", lambda: len(watch.fleet.nodes))
        metrics.watch("heartbeats_rejected", "Values that were no heartbeat.", lambda: watch.rejected_total)
