"""What one more engine of a model would take on this node now: the settings, the needs and the census put to
`placement`. Plans, offers and explanations come from here; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from schemas.node import Device, Offer
from worker.assignment import cpus_for, gpus_for
from worker.bars import Bars
from worker.catalogue import Catalogue
from worker.census import Census
from worker.loading import Needs
from worker.needs import Kind, KnownNeeds
from worker.placement import place_any
from worker.plans import STANDARD, Cannot, Evict, Fits, Need, Plan, Policy, Wait, Wanted, is_cpu
from worker.reasons import plan_text
from worker.settings import ModelSettings

OFFER_WAITED_S: Final = 0.0


@dataclass(frozen=True, slots=True)
class Survey:
    """Plans over the census that `count` takes. `limited`: `memory_limit_bytes` is set, and nothing may go above it."""

    catalogue: Catalogue
    needs: KnownNeeds
    bars: Bars
    count: Callable[[], Census]
    devices: Callable[[], Sequence[Device]]
    load_seconds: Callable[[ModelSettings], float | None]
    engine_sees_gpus: bool
    limited: bool
    policy: Policy = STANDARD

    def plan(
        self, model: str, waited_s: float = 0.0, devices: tuple[str, ...] = (), census: Census | None = None
    ) -> Plan:
        """What can be done for one more engine. `devices`: on exactly these."""
        entry = self.catalogue.entry(model)
        if entry is None:
            return Cannot(f"{model} is not one of this node's models")
        census = census or self.count()
        gpus = gpus_for(entry, self.devices(), engine_sees_gpus=self.engine_sees_gpus)
        if devices:
            return self._on(entry, devices, census, waited_s, exactly=True)
        cpus = cpus_for(entry, gpus)
        found = self._on(entry, gpus, census, waited_s) if gpus else None
        if cpus and (found is None or isinstance(found, Cannot)):
            return self._on(entry, cpus, census, waited_s)
        if isinstance(found, Cannot) and not entry.devices:
            return Cannot(f"{found.reason}; it may not run on this node's CPU, as cpu_fallback is not set")
        return found or Cannot(f"{model} has no device here: none of {', '.join(entry.devices)} can be used")

    def kinds(self, entry: ModelSettings) -> list[Kind]:
        """The kinds of device that a model may meet here."""
        gpus = gpus_for(entry, self.devices(), engine_sees_gpus=self.engine_sees_gpus)
        cpus = cpus_for(entry, gpus)
        return [*(("gpu",) if gpus else ()), *(("cpu",) if cpus else ())]  # pyright: ignore[reportReturnType]

    def fallback_devices(self, entry: ModelSettings) -> tuple[str, ...]:
        """Where an engine is tried that fits nowhere, so that its reason is seen."""
        gpus = gpus_for(entry, self.devices(), engine_sees_gpus=self.engine_sees_gpus)
        chosen = gpus or cpus_for(entry, gpus)
        return chosen if entry.devices_per_engine is None else chosen[: entry.devices_per_engine]

    def offer(self, model: str, census: Census) -> Offer:
        """For the heartbeat."""
        plan, entry = self.plan(model, OFFER_WAITED_S, census=census), self.catalogue.entry(model)
        load_s = self.load_seconds(entry) if entry is not None else None
        if not isinstance(plan, Fits | Evict):
            never, need = isinstance(plan, Cannot), self._best_need(model)
            return Offer(model=model, never=never, reason=plan.reason, needed_bytes=need, load_seconds=load_s)
        return Offer(
            model=model,
            cost=plan.cost,
            devices=plan.devices,
            evicts=plan.victims if isinstance(plan, Evict) else (),
            needed_bytes=plan.need.total_bytes(len(plan.devices)),
            free_bytes=census.free_bytes(plan.devices),
            load_seconds=load_s,
        )

    def explain(self, model: str) -> tuple[Offer, str]:
        """The offer of now, and the same in words."""
        census = self.count()
        return self.offer(model, census), plan_text(model, self.plan(model, census=census), census.rooms)

    def _best_need(self, model: str) -> int | None:
        known = [self.needs.of(model, kind) for kind in ("gpu", "cpu")]
        return next((each.choices[0].total_bytes() for each in known if isinstance(each, Needs)), None)

    def _on(
        self, entry: ModelSettings, devices: tuple[str, ...], census: Census, waited_s: float, *, exactly: bool = False
    ) -> Plan:
        model = entry.model
        needs = self.needs.of(model, "cpu" if all(is_cpu(each) for each in devices) else "gpu")
        if needs is None:
            return Wait(f"{model}: its file is being read")
        if isinstance(needs, str):
            return Cannot(needs)
        barred = {each: bar for each in devices if (bar := self.bars.of(model, each)) is not None}
        if devices and len(barred) == len(devices):
            last = min(barred.values(), key=lambda bar: bar.left_s)
            return Wait(f"{last.reason}; tried again in {last.left_s:.0f} s", last.left_s)
        wanted = Wanted(
            model,
            Need(0),
            tuple(each for each in devices if each not in barred),
            split=len(devices) if exactly else entry.devices_per_engine,
            waited_s=waited_s,
            lenient=needs.check == "warn" and not self.limited,
            engines_limit=entry.max_engines,
            ordered=bool(entry.devices or exactly),
        )
        return place_any(wanted, needs.choices, census.rooms, census.residents, self.policy)
