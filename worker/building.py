"""The keeper of a node, what it is made of, and whoever gives its engines work."""

from __future__ import annotations

from collections.abc import Callable

from schemas.node import Device
from worker.accelerators.shares import reserved_bytes
from worker.assignment import usable_gpus
from worker.bars import Bars
from worker.catalogue import Catalogue
from worker.census import Counter
from worker.demandrate import DemandRates
from worker.engine import Engine
from worker.keeper import Keeper
from worker.loading import Loader, Needs, Unfit
from worker.making import Workshop
from worker.needs import Kind, KnownNeeds
from worker.parts import Parts, Rules
from worker.plans import Policy
from worker.replies import Replies
from worker.serving import Serving
from worker.surroundings import Surroundings


class InUse:
    """Who uses the engines: the slots of a `Serving`, which is made after the keeper that it needs."""

    def __init__(self) -> None:
        self.serving: Serving | None = None

    def busy(self, engine: str) -> int:
        """Requests in an engine."""
        return self.serving.slots.busy(engine) if self.serving else 0

    def idle_since(self, engine: str) -> float | None:
        """Since when there is none."""
        return self.serving.slots.idle_since(engine) if self.serving else None

    def waiting(self, model: str) -> int:
        """Requests that wait here for a model."""
        return self.serving.waiting.count(model) if self.serving else 0

    def set_yielding(self, engine: str, on: bool) -> None:
        """It takes nothing new, or does again."""
        if self.serving is not None:
            self.serving.slots.set_yielding(engine, on)


def build_serving(here: Surroundings, keeper: Keeper, replies: Replies, on_change: Callable[[str], None]) -> Serving:
    """Whoever gives the engines their work."""
    settings = here.settings
    return Serving(
        settings.node,
        here.bus,
        keeper,
        replies=replies,
        tasks=here.tasks,
        metrics=here.metrics,
        clock=here.clock,
        on_change=on_change,
        device_limit=settings.max_pending_requests_per_device,
        spill_after_s=settings.spill_after_s,
    )


def build_keeper(
    here: Surroundings, in_use: InUse, on_change: Callable[[Engine], None], on_offers: Callable[[], None]
) -> Keeper:
    """A keeper with no engine yet. Raises `FlagRefused` for a model whose flags may not be set."""
    settings, binary, devices = here.settings, here.binary, here.devices
    demand = DemandRates()
    catalogue = Catalogue(settings.models if binary else ())

    def reserve(device: Device) -> int:
        return reserved_bytes(device, settings)

    async def read() -> tuple[Device, ...]:
        await devices.read()
        return devices.current

    loader = Loader(settings.state_folder / "loads", read, check=settings.memory_check, reserve=reserve)
    shop = Workshop(settings, binary, devices.accelerators, loader, here.confines, in_use.busy, here.launch)
    shop.check()

    async def needs(model: str, kind: Kind) -> Needs:
        entry = catalogue.entry(model)
        if entry is None:
            raise Unfit(f"{model} is not one of this node's models")
        return await shop.needs(entry, kind, next(iter(usable_gpus(devices.current)), "cuda:0"))

    return Keeper(
        Parts(
            catalogue=catalogue,
            maker=shop,
            needs=KnownNeeds(needs),
            devices=devices,
            counter=Counter(in_use, demand, reserve, settings.memory_limit_bytes),
            demand=demand,
            bars=Bars(here.clock, settings.engine.restart_delay_cap_s),
            rules=Rules(
                start_concurrency=settings.instance_start_concurrency,
                idle_ttl_s=settings.idle_ttl_s,
                give_up_after=settings.engine.give_up_waiting_after,
                busy_grace_s=settings.drain_s,
                policy=Policy(pack=settings.placement),
            ),
            tasks=here.tasks,
            clock=here.clock,
            on_change=on_change,
            tell=here.events.tell,
            engine_sees_gpus=bool(binary and binary.devices),
            on_offers=on_offers,
        )
    )
