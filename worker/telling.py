"""Everything by which a node is seen from outside and told what to do: heartbeat, statistics, metrics, control."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from bus.connection import Bus
from schemas.node import Heartbeat
from worker.control import Control, Reach
from worker.facts import NodeFacts
from worker.gauges import Logs
from worker.health import Health
from worker.heartbeat import HeartbeatMaker, Heartbeats
from worker.keeper import Keeper
from worker.library import Library
from worker.lifecycle import Lifecycle
from worker.metrics import Present
from worker.modelpages import ModelPages
from worker.modelverbs import ModelVerbs
from worker.serving import Serving
from worker.statistics import Statistics
from worker.surroundings import Surroundings, puna_version
from worker.usage import Traffic


class Telling:
    """Owner of those parts. `leave` makes the node drain and end. `models` are what the node lists."""

    def __init__(
        self,
        here: Surroundings,
        keeper: Keeper,
        serving: Serving,
        *,
        boot_id: str,
        leave: Callable[[], None],
        library: Library,
        health: Callable[[], Health],
    ) -> None:
        settings, bus, metrics = here.settings, here.bus, here.metrics
        self._here = here
        self._keeper = keeper
        self._statistics = Statistics(
            settings, here.confines, metrics, lambda: keeper.engines, self._abused, lambda: _traffic(bus)
        )
        metrics.add(Logs(lambda: keeper.engines.values()))
        self._lifecycle = Lifecycle(settings.state_folder, lambda: keeper.engines.values(), metrics)
        counts = serving.slots.by_model
        metrics.add(Present(counts, lambda: len(serving.waiting), lambda: bus.connected))
        facts = NodeFacts(settings, here.devices, keeper, serving, self._statistics.usage)
        self.maker = HeartbeatMaker(
            settings.node,
            boot_id,
            puna_version(),
            facts,
            labels=library.labels,
            region=settings.region,
            engine=here.binary,
        )
        self.heartbeats = Heartbeats(bus, self._next_beat, settings.node, metrics.heartbeats_failed.inc)
        self.models = ModelPages(self.maker.beat, lambda: keeper.models, library.copies.states)
        further = ModelVerbs(settings.node, self.models, library.store.copies, health)
        reach = Reach(settings, keeper, serving, self.maker.beat, here.tasks, leave, further.verbs(), metrics.ordered)
        self._control = Control(bus, puna_version(), reach)

    async def start(self, stack: AsyncExitStack) -> None:
        """Tell, and listen to the verbs of control until `stack` is left."""
        await self._control.start()
        stack.push_async_callback(self._control.stop)
        self._here.tasks.start_vital("heartbeats", self.heartbeats.run())
        self._here.tasks.start_vital("devices", self._here.devices.run())
        self._statistics.begin(self._here.tasks, self.maker.beat)
        self._here.tasks.start_vital("lifecycle", self._lifecycle.run())

    def _next_beat(self) -> Heartbeat:
        self._here.metrics.heartbeat_made()
        return self.maker.next()

    def _abused(self, engine_id: str, reason: str) -> None:
        """An engine takes more than it may: it starts anew."""
        engine = self._keeper.engines.get(engine_id)
        if engine is not None:
            metrics, model = self._here.metrics, engine.spec.model
            metrics.abuses.labels(metrics.model(model)).inc()
            self._here.events.tell("engine_abuse", engine=engine_id, model=model, reason=reason)
            self._here.tasks.start(f"restart {engine_id}", engine.restart(why=reason, code="abuse"))


def _traffic(bus: Bus) -> Traffic:
    return Traffic(bus.traffic.received_bytes, bus.traffic.sent_bytes)
