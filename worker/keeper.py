"""The one owner of which engines there are on a node.

Level-triggered: a wish (a held request, an operator, preload, a pinned model) stands until it is met, and is looked at
again whenever anything has changed and at each tick. To meet one, `placement` is asked; its victims are stopped first,
and the new engine, whose memory counts from then on, starts when they are gone. Only so many engines load at once.

An engine that only a request wanted, and whose starts keep failing, is removed, and its model is not tried on its
devices again for a while. Those that the settings or an operator want are kept, and retried by their own run loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from schemas.node import Offer
from worker.adoption import Adoptable
from worker.byhand import ByHand
from worker.census import Census
from worker.engine import Engine
from worker.formers import GoingBack
from worker.kept import Kept, Origin
from worker.parts import Parts
from worker.plans import Evict, Fits, Need, Plan, Yield
from worker.preload import Preload
from worker.renewal import Renewal
from worker.roster import Roster
from worker.settings import ModelSettings
from worker.survey import Survey
from worker.wishes import PATIENT, Wish, Wishes

log = logging.getLogger(__name__)

OFFERS_FRESH_S = 0.5
"""Offers are counted up anew after this, and after any change of engines and files: a heartbeat may come ten times a
second."""


class Keeper:
    """Engines by wish and by plan. `engines` is a live view by id."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._catalogue = parts.catalogue
        self._clock = parts.clock
        self._wishes = Wishes()
        self._roster = Roster(parts, self.poke)
        self._poked = self._closed = False
        self._offers: tuple[float, tuple[Offer, ...]] = (-math.inf, ())
        self.on_used: Callable[[str], None] = lambda _: None
        """Told of each request of a model: whoever has its files."""
        self.survey = Survey(
            catalogue=parts.catalogue,
            needs=parts.needs,
            bars=parts.bars,
            count=self.census,
            devices=lambda: parts.devices.current,
            load_seconds=parts.maker.load_seconds,
            engine_sees_gpus=parts.engine_sees_gpus,
            limited=parts.counter.limit_bytes is not None,
            policy=parts.rules.policy,
        )
        self.by_hand = ByHand(parts, self.survey, self._roster, self._wishes, self._pass)
        self._preload = Preload(parts, self.survey, self._roster, self._wishes, self._read)
        self._renewal = Renewal(parts, self._roster, self._wishes, self._plan_instead)
        self._back = GoingBack(parts, self._roster, self._wishes, self._renewal)
        self.by_hand.on_unload = self._back.forgive
        self._entries = _by_name(parts.catalogue.entries)
        parts.catalogue.on_change(self._replaced)

    # -- telling -----------------------------------------------------------------------------------------------------
    @property
    def engines(self) -> Mapping[str, Engine]:
        """All engines by id: a live view."""
        return self._roster.engines

    @property
    def models(self) -> Collection[str]:
        """Models that this node can serve, with an engine or not."""
        return self._catalogue.models

    def serves(self, model: str) -> bool:
        """Whether it is one of `models`."""
        return self._catalogue.entry(model) is not None

    def of(self, model: str) -> Sequence[Engine]:
        """The engines of a model, in the order of their ids."""
        return [each.engine for each in self._roster.of(model)]

    def kept(self, engine_id: str) -> Kept | None:
        """What is known of an engine beside itself."""
        return self._roster.kept.get(engine_id)

    def pinned(self, model: str) -> bool:
        """Whether engines of the model are never stopped to make room."""
        entry = self._catalogue.entry(model)
        return entry is not None and entry.pinned

    def starting(self, model: str) -> bool:
        """Whether an engine of the model is on its way."""
        return self._back.coming(model) or self._placed(model)

    def _placed(self, model: str) -> bool:
        return any(each.on_its_way for each in self._roster.of(model))

    def census(self) -> Census:
        """Devices and engines of now."""
        pinned = [each.model for each in self._catalogue.entries if each.pinned]
        devices, kept = self._parts.devices.current, tuple(self._roster.kept.values())
        return self._parts.counter.take(devices, kept, pinned, self._clock())

    def plan(self, model: str, waited_s: float = 0.0) -> Plan:
        """What it would take to start one more engine of the model, decided now."""
        return self.survey.plan(model, waited_s)

    def _plan_instead(self, old: Kept, freed: bool) -> Plan:
        return self.survey.plan(old.model, census=self.census().without(old.engine_id, freed=freed))

    def offers(self) -> tuple[Offer, ...]:
        """What the heartbeat tells of each model of the catalogue, at most `OFFERS_FRESH_S` old."""
        told_at, offers = self._offers
        now = self._clock()
        if now - told_at >= OFFERS_FRESH_S:
            census = self.census()
            offers = tuple(self._back.told(self.survey.offer(model, census)) for model in self._catalogue.models)
            self._offers = (now, offers)
        return offers

    # -- asking ------------------------------------------------------------------------------------------------------
    def want(self, model: str, why: str, *, devices: Sequence[str] = (), waited_s: float = 0.0) -> None:
        """A request that has waited so long is held for one more engine of the model: start one when a plan allows it.
        To be repeated while the request is held; no more than one is on its way at a time."""
        if self._closed or self.starting(model) or not self.serves(model):
            return
        if self._wishes.put(model, "held", self._clock() - waited_s, self._clock(), tuple(devices)):
            fields = {"event": "engine_wanted", "model": model, "why": why, "waited_s": round(waited_s, 1)}
            log.info("engine_wanted", extra=fields)
        self.by_hand.unloaded.discard(model)
        self._pass()

    def used(self, model: str) -> None:
        """A request of the model begins."""
        self._parts.demand.add(model, self._clock())
        self.on_used(model)

    def replace(self, models: Iterable[ModelSettings]) -> None:
        """Other models, or other files of them, from now on."""
        self._back.bring(models)

    @property
    def former_paths(self) -> Iterable[Path]:
        """Files of models that were changed, until the change has proved that it loads."""
        return self._back.formers.paths

    async def load(self, model: str, devices: Sequence[str] = ()) -> Engine:
        """See `ByHand.load`."""
        return await self.by_hand.load(model, devices)

    async def unload(self, *, model: str | None = None, engine: str | None = None, reason: str) -> list[str]:
        """See `ByHand.unload`."""
        return await self.by_hand.unload(model=model, engine=engine, reason=reason)

    # -- life --------------------------------------------------------------------------------------------------------
    async def begin(self, found: Sequence[Adoptable] = ()) -> None:
        """Read the models' files, take over what runs already, and start what is to be there from the beginning."""
        await self._preload.begin(found)
        self.poke()

    def close(self) -> None:
        """Start nothing any more: the node drains."""
        self._closed = True
        self._roster.closed = True

    async def stop(self, *, leave: bool = False) -> None:
        """Stop all engines, and wait until they are gone; with `leave`, ready ones run on for the next worker. Safe to
        call twice."""
        self.close()
        await self._roster.stop(leave=leave)

    def poke(self) -> None:
        """Something changed: look at the wishes once this turn of the event loop is over."""
        if not self._poked:
            self._poked = True
            asyncio.get_running_loop().call_soon(self._pass)

    def stir(self) -> None:
        """Slots were taken or freed: an engine that is to go may be idle, a wish may be met."""
        self._roster.stir()
        if self._wishes:
            self.poke()

    def tick(self, now: float) -> None:
        """What only time changes: who was idle too long, what is pinned and missing, wishes that were not repeated."""
        self._wishes.forget(now)
        self._preload.tick(now)
        for each in tuple(self._roster.kept.values()):
            self._end_idle(each, now)
        for entry in self._catalogue.entries:
            if entry.pinned and entry.model not in self.by_hand.unloaded and not self._roster.of(entry.model):
                self._wishes.put(entry.model, "pinned", now, now)
        self._pass()

    def _end_idle(self, each: Kept, now: float) -> None:
        entry = self._catalogue.entry(each.model)
        limit_s = (entry.idle_ttl_s if entry else None) or self._parts.rules.idle_ttl_s
        since = self._parts.counter.usage.idle_since(each.engine_id)
        if limit_s is None or since is None or each.ready_at is None or self.pinned(each.model) or each.going:
            return
        idle_s = now - max(since, each.ready_at)
        if idle_s >= limit_s and not self._parts.counter.usage.waiting(each.model):
            self._roster.go(each, f"had no request for {idle_s:.0f} s (idle_ttl_s)", "idle")

    def _replaced(self) -> None:
        """Another catalogue: engines of models that left it stop once they are idle."""
        before, self._entries = self._entries, _by_name(self._catalogue.entries)
        changed = [model for model, entry in self._entries.items() if before.get(model, entry) != entry]
        self._parts.needs.forget(changed)
        for model in changed:
            self._parts.bars.lift(model)
        for each in tuple(self._roster.kept.values()):
            if not self.serves(each.model):
                self._roster.go(each, "its model was removed", "user-requested", grace_s=self._parts.rules.busy_grace_s)
        self._news()
        self._preload.refresh([model for model, entry in self._entries.items() if before.get(model) != entry])

    def _read(self) -> None:
        """More is known of the models' files."""
        self._news()
        self.poke()

    def _news(self) -> None:
        """What is offered may be something else now."""
        self._offers = (-math.inf, ())
        self._parts.on_offers()

    # -- deciding ----------------------------------------------------------------------------------------------------
    def _pass(self) -> None:
        self._poked = False
        self._offers = (-math.inf, ())
        if self._closed:
            return
        self._renewal.look()
        now, yielding = self._clock(), set[str]()
        for wish in self._wishes:
            yielding.update(self._meet(wish, now))
        self._roster.let_yield(yielding)
        self._roster.launch()

    def _meet(self, wish: Wish, now: float) -> Iterable[str]:
        """Start what a plan allows. Else who should yield for it."""
        if self._placed(wish.model) and not wish.devices:
            self._wishes.drop(wish.model)
            return ()
        plan = self.survey.plan(wish.model, wish.waited_s(now), wish.devices)
        if isinstance(plan, Fits) or (isinstance(plan, Evict) and wish.origin not in PATIENT):
            self._wishes.drop(wish.model)
            self.place(wish.model, plan, wish.origin)
        elif isinstance(plan, Yield) and wish.origin not in PATIENT:
            return plan.engines
        return ()

    def place(self, model: str, plan: Fits | Evict, origin: Origin) -> None:
        """Carry out a plan."""
        victims = [self._roster.kept[each] for each in (plan.victims if isinstance(plan, Evict) else ())]
        self._roster.add(model, plan.devices, plan.need or Need(0), origin, after=victims)
        for victim in victims:
            self._roster.go(victim, f"stopped to make room for {model}", "evicted")
        if victims:
            self._parts.tell("model_switched", model=model, devices=plan.devices, stopped=[v.model for v in victims])


def _by_name(entries: Iterable[ModelSettings]) -> dict[str, ModelSettings]:
    return {entry.model: entry for entry in entries}
