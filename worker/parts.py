"""What a keeper is made of, as others make it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bus.watched import Tasks
from schemas.node import Device
from worker.bars import Bars
from worker.catalogue import Catalogue
from worker.census import Counter
from worker.demandrate import DemandRates
from worker.engine import Engine
from worker.enginespec import EngineSpec
from worker.needs import KnownNeeds
from worker.plans import STANDARD, Need, Policy
from worker.settings import ModelSettings


class Maker(Protocol):
    """Makes engines."""

    def spec(self, entry: ModelSettings, devices: tuple[str, ...]) -> EngineSpec:
        """What an engine of a model on these devices is asked to be."""
        ...

    def engine(self, engine_id: str, spec: EngineSpec, need: Need, on_change: Callable[[Engine], None]) -> Engine:
        """An engine that has not been asked to run. Raises `FlagRefused`."""
        ...

    def load_seconds(self, entry: ModelSettings) -> float | None:
        """How long the model's last load took."""
        ...


class Figures(Protocol):
    """The devices."""

    @property
    def current(self) -> Sequence[Device]:
        """As they were last read."""
        ...

    def read(self) -> Awaitable[None]:
        """Read them now."""
        ...


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the keeper goes by."""

    start_concurrency: int = 4
    idle_ttl_s: float | None = None
    give_up_after: int = 3
    """Failed starts in a row after which an engine started on demand is removed."""
    busy_grace_s: float = 30.0
    """How long the requests of an engine that is unloaded may take to end."""
    policy: Policy = STANDARD


@dataclass(frozen=True, slots=True)
class Parts:
    """What a keeper is made of. `on_change` hears of each change of an engine, also that it is no longer in the
    keeper's `engines`; `tell(kind, **facts)` publishes an event, `on_offers` hears that offers may be others."""

    catalogue: Catalogue
    maker: Maker
    needs: KnownNeeds
    devices: Figures
    counter: Counter
    demand: DemandRates
    bars: Bars
    rules: Rules
    tasks: Tasks
    clock: Callable[[], float]
    on_change: Callable[[Engine], None]
    tell: Callable[..., Any]
    engine_sees_gpus: bool = False
    on_offers: Callable[[], None] = lambda: None
