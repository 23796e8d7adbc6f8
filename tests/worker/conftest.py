"""A keeper with its surroundings, real processes of the fake engine, and GPUs that are played.

The memory of those GPUs is what plans and residents say it is, so one or two models fit as a test wants.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bus.watched import Tasks
from schemas.node import Device
from worker.bars import Bars
from worker.catalogue import Catalogue
from worker.census import Counter
from worker.demandrate import DemandRates
from worker.engine import Engine
from worker.enginespec import EngineBinary, EngineSpec
from worker.keeper import Keeper
from worker.loading import Loader
from worker.needs import Kind, KnownNeeds
from worker.parts import Parts, Rules
from worker.plans import Need
from worker.ports import PortPool
from worker.settings import ModelSettings, WorkerSettings

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
MIB = 1 << 20
ONE_MIB = 100
"""A device of so many MiB has room for one of the small models, which need 65 MiB each."""


class Devices:
    """What the devices tell: all of their memory is free as far as they know."""

    def __init__(self, *sizes_mib: int) -> None:
        self.sizes = sizes_mib
        self.taken: dict[str, int] = {}

    @property
    def current(self) -> tuple[Device, ...]:
        return tuple(self._device(f"cuda:{number}", size * MIB) for number, size in enumerate(self.sizes))

    def _device(self, name: str, size: int) -> Device:
        free = size - self.taken.get(name, 0)
        return Device(device=name, backend="cuda", name="G", memory_total_bytes=size, memory_free_bytes=free)

    async def read(self) -> None:
        await asyncio.sleep(0)


class Usage:
    """Who is in which engine, as a test says."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.runs: dict[str, int] = {}
        self.waits: dict[str, int] = {}
        self.since: dict[str, float] = {}
        self.yielding: set[str] = set()

    def busy(self, engine: str) -> int:
        return self.runs.get(engine, 0)

    def idle_since(self, engine: str) -> float | None:
        return None if self.runs.get(engine) else self.since.get(engine, 0.0)

    def waiting(self, model: str) -> int:
        return self.waits.get(model, 0)

    def set_yielding(self, engine: str, on: bool) -> None:
        (self.yielding.add if on else self.yielding.discard)(engine)

    def served(self, engine: str) -> None:
        self.since[engine] = self.clock()


class House:
    """A keeper with its surroundings. `offset_s` moves its clock."""

    def __init__(
        self, tmp_path: Path, models: Sequence[Mapping[str, Any]], sizes: Sequence[int], settings: Any
    ) -> None:
        self.tmp_path = tmp_path
        quick = {"restart_delay_s": 0.02, "restart_delay_cap_s": 0.2, "stop_grace_s": 5.0, "orphan_grace_s": 0.0}
        engine = quick | {"port_cooldown_s": 0.0}
        given = {"node": "n1", "models": models, "state_dir": tmp_path / "state", "engine": engine} | settings
        self.settings = WorkerSettings.model_validate(given)
        self.offset_s = 0.0
        self.devices = Devices(*sizes)
        self.usage = Usage(self.clock)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.tasks = Tasks()
        self.changed = asyncio.Event()
        self.on_offers: Callable[[], None] = self.changed.set
        self.ports = PortPool(22000, 22999, cooldown_s=0, folder=tmp_path)
        self.loader = Loader(tmp_path / "loads", self._read)
        self.catalogue = Catalogue(self.settings.models)
        demand = DemandRates()
        self.keeper = Keeper(
            Parts(
                catalogue=self.catalogue,
                maker=self,
                needs=KnownNeeds(self._needs),
                devices=self.devices,
                counter=Counter(self.usage, demand, lambda _: 0, self.settings.memory_limit_bytes),
                demand=demand,
                bars=Bars(self.clock, 60.0),
                rules=Rules(self.settings.instance_start_concurrency, self.settings.idle_ttl_s, busy_grace_s=5.0),
                tasks=self.tasks,
                clock=self.clock,
                on_change=lambda _: self.changed.set(),
                tell=lambda kind, **facts: self.events.append((kind, facts)),
                engine_sees_gpus=True,
                on_offers=lambda: self.on_offers(),
            )
        )

    def clock(self) -> float:
        return asyncio.get_running_loop().time() + self.offset_s

    async def _read(self) -> tuple[Device, ...]:
        return self.devices.current

    async def _needs(self, model: str, kind: Kind) -> Any:
        entry = self.catalogue.entry(model)
        assert entry is not None
        return await self.loader.needs(self.spec(entry, ("cuda:0",)))

    # -- the maker
    def spec(self, entry: ModelSettings, devices: tuple[str, ...]) -> EngineSpec:
        return EngineSpec(entry.model, entry.path, context_tokens=256, slots=1, devices=devices, flags=entry.flags)

    def engine(self, engine_id: str, spec: EngineSpec, need: Need, on_change: Callable[[Engine], None]) -> Engine:
        return Engine(
            engine_id,
            spec,
            EngineBinary("llama-server", (sys.executable, "-S", str(FAKE)), "fake"),
            ports=self.ports,
            state_dir=self.tmp_path / "state",
            settings=self.settings.engine,
            loader=self.loader,
            on_change=on_change,
        )

    def load_seconds(self, entry: ModelSettings) -> float | None:
        return 1.0

    # -- what tests ask
    async def until(self, reached: Callable[[], Any], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not reached():
                self.changed.clear()
                self.keeper.tick(self.clock())
                if not reached():
                    try:
                        async with asyncio.timeout(0.1):
                            await self.changed.wait()
                    except TimeoutError:
                        continue

    def ready(self) -> dict[str, str]:
        """Models that are ready, by engine."""
        here = self.keeper.engines
        return {name: each.spec.model for name, each in here.items() if each.state == "ready"}

    async def until_ready(self, *models: str) -> None:
        await self.until(lambda: sorted(self.ready().values()) == sorted(models))

    def engine_of(self, model: str) -> Engine:
        (engine,) = self.keeper.of(model)
        return engine

    def switches(self) -> int:
        return sum(kind == "model_switched" for kind, _ in self.events)


NewHouse = Callable[..., Awaitable[House]]


@pytest.fixture
async def house(tmp_path: Path, write_model: Callable[..., Path]) -> AsyncIterator[NewHouse]:
    """Factory: `await house({"a": {}, "b": {"pinned": True}}, sizes=(100,))` → a keeper that has begun."""
    made: list[House] = []

    async def make(
        models: Mapping[str, Mapping[str, Any]], sizes: Sequence[int] = (ONE_MIB,), **settings: Any
    ) -> House:
        rows = [
            {"model": name, "path": write_model(tmp_path / f"{name}.gguf")} | dict(more)
            for name, more in models.items()
        ]
        made.append(House(tmp_path, rows, sizes, settings))
        await made[-1].keeper.begin()
        return made[-1]

    yield make
    for each in made:
        await each.keeper.stop()
        await each.tasks.stop()
