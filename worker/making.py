"""How an engine of this node is made: its program, its limits, its memory plan, its ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from schemas.errors import Unavailable
from worker.accelerators import Accelerator
from worker.assignment import spec_of
from worker.backend import Launch
from worker.confines import Confines
from worker.engine import Engine
from worker.enginespec import EngineBinary, EngineSpec
from worker.flags import FlagRefused
from worker.launch import engine_argv
from worker.loading import Loader, Needs, Unfit
from worker.loadtimes import LoadTimes
from worker.needs import Kind
from worker.plans import Need
from worker.ports import PortPool
from worker.process import launch
from worker.settings import ModelSettings, WorkerSettings


@dataclass(slots=True)
class Workshop:
    """Makes engines. `busy(engine)` tells how many requests are in one."""

    settings: WorkerSettings
    binary: EngineBinary | None
    accelerators: Sequence[Accelerator]
    loader: Loader
    confines: Confines
    busy: Callable[[str], int]
    launch: Launch = launch
    ports: PortPool = field(init=False)
    load_times: LoadTimes = field(init=False)

    def __post_init__(self) -> None:
        engine = self.settings.engine
        self.ports = PortPool(*engine.port_range, cooldown_s=engine.port_cooldown_s)
        self.load_times = LoadTimes(self._loads)

    def check(self) -> None:
        """Look at the flags of all models of the settings. Raises `FlagRefused` for one that may not be set."""
        if self.binary is not None:
            for entry in self.settings.models:
                engine_argv(self.binary, self.spec(entry, ("cpu:0",)), port=0)

    def spec(self, entry: ModelSettings, devices: tuple[str, ...]) -> EngineSpec:
        """What an engine of a model on these devices is asked to be."""
        return spec_of(entry, self.settings, self.accelerators, devices)

    def engine(self, engine_id: str, spec: EngineSpec, need: Need, on_change: Callable[[Engine], None]) -> Engine:
        """An engine that has not been asked to run. Raises `FlagRefused`."""
        if self.binary is None:
            raise Unavailable("this node has no engine program")
        self.loader.expect(engine_id, need.context_tokens)
        return Engine(
            engine_id,
            spec,
            self.binary,
            ports=self.ports,
            state_dir=self.settings.state_folder,
            settings=self.settings.engine,
            loader=self.loader,
            confine=partial(self.confines.make, model=spec.model, devices=spec.devices),
            free=self.confines.free,
            oom=partial(self.confines.killed_for_memory, engine_id),
            busy=partial(self.busy, engine_id),
            launch=self.launch,
            on_change=on_change,
        )

    async def needs(self, entry: ModelSettings, kind: Kind, gpu: str) -> Needs:
        """What a model takes of one kind of device. Raises `Unfit`."""
        if self.binary is None:
            raise Unfit("this node has no engine program")
        spec = self.spec(entry, ("cpu:0",) if kind == "cpu" else (gpu,))
        try:
            engine_argv(self.binary, spec, port=0)
        except FlagRefused as refused:
            raise Unfit(refused.message) from refused
        return await self.loader.needs(spec)

    def load_seconds(self, entry: ModelSettings) -> float | None:
        """How long the model's last load took."""
        return self.load_times.last_s(entry.path)

    @property
    def _loads(self) -> Path:
        return self.settings.state_folder / "loads"
