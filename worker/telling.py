"""Everything by which a node is seen from outside and told what to do: heartbeat, statistics, metrics, control."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from bus.connection import Bus
from bus.watched import Tasks
from schemas.node import Heartbeat
from worker.confines import Confines
from worker.control import Control, Reach
from worker.devices import Devices
from worker.events import Events
from worker.facts import NodeFacts
from worker.heartbeat import HeartbeatMaker, Heartbeats
from worker.keeper import Keeper
from worker.lifecycle import Lifecycle
from worker.metrics import Metrics, Present
from worker.serving import Serving
from worker.settings import WorkerSettings
from worker.statistics import Statistics


class Telling:
    """Owner of those parts. `leave` makes the node drain and end."""

    def __init__(
        self,
        settings: WorkerSettings,
        bus: Bus,
        keeper: Keeper,
        serving: Serving,
        *,
        devices: Devices,
        confines: Confines,
        metrics: Metrics,
        events: Events,
        tasks: Tasks,
        boot_id: str,
        version: str,
        leave: Callable[[], None],
    ) -> None:
        self._keeper = keeper
        self._devices = devices
        self._metrics = metrics
        self._events = events
        self._tasks = tasks
        self._statistics = Statistics(settings, confines, metrics, lambda: keeper.engines, self._abused)
        self._lifecycle = Lifecycle(settings.state_folder, lambda: keeper.engines.values())
        counts = serving.slots.by_model
        metrics.add(Present(counts, lambda: len(serving.waiting), lambda: bus.connected))
        facts = NodeFacts(settings, devices, keeper, serving, self._statistics.usage)
        self.maker = HeartbeatMaker(
            settings.node, boot_id, version, facts, labels=settings.labels, region=settings.region
        )
        self.heartbeats = Heartbeats(bus, self._next_beat, settings.node, metrics.heartbeats_failed.inc)
        reach = Reach(settings, keeper, serving, self.maker.beat, tasks, leave, metrics.ordered)
        self._control = Control(bus, version, reach)

    async def start(self, stack: AsyncExitStack) -> None:
        """Tell, and listen to the verbs of control until `stack` is left."""
        await self._control.start()
        stack.push_async_callback(self._control.stop)
        self._tasks.start_vital("heartbeats", self.heartbeats.run())
        self._tasks.start_vital("devices", self._devices.run())
        self._statistics.begin(self._tasks, self.maker.beat)
        self._tasks.start_vital("lifecycle", self._lifecycle.run())

    def _next_beat(self) -> Heartbeat:
        self._metrics.heartbeat_made()
        return self.maker.next()

    def _abused(self, engine_id: str, reason: str) -> None:
        """An engine takes more than it may: it starts anew."""
        engine = self._keeper.engines.get(engine_id)
        if engine is not None:
            self._metrics.abuses.labels(self._metrics.model(engine.spec.model)).inc()
            self._events.tell("engine_abuse", engine=engine_id, model=engine.spec.model, reason=reason)
            self._tasks.start(f"restart {engine_id}", engine.restart())
