"""Nodes without processes: the real way of a request on a real nats-server, over engines that the test moves."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from bus.connection import Bus, Message
from bus.settings import NatsSettings
from bus.topology import ensure
from bus.watched import Tasks
from schemas import topology
from schemas.node import Engine as Snapshot
from schemas.node import EngineState
from schemas.request import RequestHead
from web import Exchange, Limits, Server
from web.client import Client
from worker.enginespec import EngineSpec
from worker.inbox import Inbox
from worker.metrics import Metrics
from worker.plans import Fits, Plan
from worker.replies import Replies
from worker.serving import Serving

TICK_S = 0.02
WHOLE = orjson.dumps({"choices": [{"message": {"content": "hello"}}], "usage": {"completion_tokens": 1}})


class Backend:
    """What answers on an engine's port. Requests wait until `go` is set; `cut` breaks their connections."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.asked: list[Exchange] = []
        self.arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = Server(self._handle, limits=Limits())

    async def start(self) -> int:
        return (await self._server.start("127.0.0.1", 0))[1]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._server.stop(0)

    def cut(self) -> None:
        for exchange in self.asked:
            if not exchange.finished:
                exchange.abort()

    def _handle(self, exchange: Exchange) -> None:
        self.asked.append(exchange)
        self.arrived.set()
        task = asyncio.create_task(self._answer(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        await self.go.wait()
        if not exchange.closed:
            exchange.respond(200, WHOLE)


class FakeEngine:
    """An engine whose state is the test's."""

    def __init__(self, engine_id: str, model: str, slots: int, port: int, devices: tuple[str, ...]) -> None:
        self.engine_id = engine_id
        self.spec = EngineSpec(model, Path("none.gguf"), slots=slots, devices=devices)
        self.state: EngineState = "starting"
        self.reason: str | None = None
        self.unfit = False
        self.client: Client | None = None
        self._port = port

    def become(self, state: EngineState, reason: str | None = None, *, unfit: bool = False) -> None:
        self.state, self.reason, self.unfit = state, reason, unfit
        self.client = Client("127.0.0.1", self._port) if state == "ready" else None

    def snapshot(self, slots_busy: int = 0) -> Snapshot:
        return Snapshot(
            engine=self.engine_id,
            model=self.spec.model,
            devices=self.spec.devices,
            state=self.state,
            slots_total=self.spec.slots,
            since=time.time(),
            reason=self.reason,
            unfit=self.unfit,
        )


class FakeKeeper:
    """Starts what is wanted, at once or when the test says so, and counts the starts."""

    def __init__(self, models: Collection[str], port: int, *, slots: int, cost: int, at_once: bool) -> None:
        self._models = set(models)
        self._engines: dict[str, FakeEngine] = {}
        self.changed: Callable[[FakeEngine], None] = lambda _: None
        self.wanted: list[tuple[str, str]] = []
        self.started: list[float] = []
        self.uses = 0
        self.answer: Plan = Fits(("cpu:0",), cost)
        self._port = port
        self._slots = slots
        self._at_once = at_once
        self._numbers = itertools.count()

    @property
    def engines(self) -> Mapping[str, FakeEngine]:
        return self._engines

    @property
    def models(self) -> Collection[str]:
        return self._models

    def serves(self, model: str) -> bool:
        return model in self._models

    def of(self, model: str) -> Sequence[FakeEngine]:
        return [engine for engine in self._engines.values() if engine.spec.model == model]

    def plan(self, model: str, waited_s: float = 0.0) -> Plan:
        return self.answer

    def want(self, model: str, why: str, *, devices: Sequence[str] = (), waited_s: float = 0.0) -> None:
        self.wanted.append((model, why))
        if self.starting(model):
            return
        engine = self.add(model)
        if self._at_once:
            asyncio.get_running_loop().call_later(0.05, self.move, engine, "ready")

    def add(self, model: str) -> FakeEngine:
        self.started.append(asyncio.get_running_loop().time())
        device = f"cpu:{len(self._engines)}"
        engine = FakeEngine(f"engine-{next(self._numbers)}", model, self._slots, self._port, (device,))
        self._engines[engine.engine_id] = engine
        self.changed(engine)
        return engine

    def move(self, engine: FakeEngine, state: EngineState, reason: str | None = None, *, unfit: bool = False) -> None:
        engine.become(state, reason, unfit=unfit)
        self.changed(engine)

    def starting(self, model: str) -> bool:
        return any(engine.state == "starting" for engine in self.of(model))

    def used(self, model: str) -> None:
        self.uses += 1


class StagedNode:
    """One node's way of a request, ticked like a real one."""

    def __init__(self, bus: Bus, name: str, keeper: FakeKeeper, backend: Backend, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        self.bus, self.name, self.keeper, self.backend = bus, name, keeper, backend
        self.tasks = Tasks()
        self.replies = Replies(bus, name, self.tasks, loop.time)
        self.serving = Serving(
            name,
            bus,
            keeper,
            replies=self.replies,
            tasks=self.tasks,
            metrics=Metrics(),
            clock=loop.time,
            on_change=lambda model: self.inbox.want_for(model),
            **options,
        )
        keeper.changed = self.serving.engine_changed
        ids = itertools.count()
        self.inbox = Inbox(
            bus,
            name,
            self.serving,
            tasks=self.tasks,
            clock=loop.time,
            fresh_id=lambda: f"{name}-{next(ids)}",
            repair=self.repair,
        )
        self.frozen = False

    async def repair(self) -> None:
        await ensure(self.bus, topology.fleet(self.bus.names))

    async def start(self) -> None:
        await self.repair()
        await self.inbox.start()
        self.tasks.start("ticks", self._ticks())

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            if not self.frozen:
                now = asyncio.get_running_loop().time()
                self.replies.tick(now)
                self.serving.tick(now)
                self.inbox.tick(now)

    async def stop(self) -> None:
        await self.inbox.stop()
        self.serving.abandon_all()
        await self.tasks.stop()
        await self.bus.close()
        await self.backend.stop()


class Requester:
    """A plain client: puts requests into the line and hears their answers."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.answers: list[Message] = []
        self._more = asyncio.Event()
        self._numbers = itertools.count()
        bus.subscribe("answers.*", self._heard)

    def _heard(self, message: Message) -> None:
        self.answers.append(message)
        self._more.set()

    async def put(self, model: str, *, lane: str = "interactive", request_id: str | None = None, **more: Any) -> str:
        name = request_id or f"r{next(self._numbers)}"
        head = RequestHead("chat", name, f"answers.{name}", **({"deadline_s": 60.0} | more))
        body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]})
        await self.bus.js_publish(
            self.bus.names.queue(lane, model), body, headers=head.headers(), msg_id=f"{name}.{head.epoch}"
        )
        return name

    def demand(self, model: str, payload: bytes = b"") -> None:
        self.bus.publish(self.bus.names.demand(model), payload)

    async def count(self, least: int, timeout_s: float = 10.0) -> list[Message]:
        async with asyncio.timeout(timeout_s):
            while len(self.answers) < least:
                self._more.clear()
                await self._more.wait()
        return self.answers


async def reached(what: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Until something is the case that nobody announces."""
    async with asyncio.timeout(timeout_s):
        while not what():
            await asyncio.sleep(0.01)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    return reached


@pytest.fixture
async def new_node(nats_server: Any) -> AsyncIterator[Callable[..., Awaitable[StagedNode]]]:
    """Factory: `await new_node("n1", models=("m",), slots=1, cost=1, at_once=True, spill_after_s=…)`."""
    made: list[StagedNode] = []

    async def make(
        name: str,
        *,
        models: Collection[str] = ("m",),
        slots: int = 1,
        cost: int = 1,
        at_once: bool = True,
        **options: Any,
    ) -> StagedNode:
        bus = await Bus.connect(NatsSettings.model_validate({"url": nats_server.url}), name=name)
        backend = Backend()
        keeper = FakeKeeper(models, await backend.start(), slots=slots, cost=cost, at_once=at_once)
        node = StagedNode(bus, name, keeper, backend, **options)
        made.append(node)
        await node.start()
        await bus.flush(2)
        return node

    yield make
    for node in made:
        await node.stop()


@pytest.fixture
async def requester(nats_server: Any) -> AsyncIterator[Requester]:
    bus = await Bus.connect(NatsSettings.model_validate({"url": nats_server.url}), name="requester")
    await ensure(bus, topology.fleet(bus.names))
    yield Requester(bus)
    await bus.close()
