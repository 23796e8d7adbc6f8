"""The engines of a node by id, how they come and how they go. The keeper decides; here it is done."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from schemas.node import ReasonCode
from worker.engine import Engine
from worker.kept import Kept, Origin
from worker.parts import Parts
from worker.plans import Need, is_cpu
from worker.slots import engine_order

log = logging.getLogger(__name__)

IDLE_LOOK_S: Final = 1.0
"""How often an engine that is to go is looked at while its requests end, if nothing else is heard."""


class Roster:
    """Owner of the engines. `poke` is called when a wish may be met that could not be."""

    def __init__(self, parts: Parts, poke: Callable[[], None]) -> None:
        self.kept: dict[str, Kept] = {}
        self.engines: dict[str, Engine] = {}
        self.reserved: set[str] = set()
        """Ids of engines that run and may yet be taken over."""
        self.closed = False
        self.on_ready: Callable[[Kept], None] = lambda _: None
        self.on_hopeless: Callable[[Kept, str], bool] = _stays
        """Told of one that fails again and again. True: something else is served in its place, so it is to go."""
        self._parts = parts
        self._poke = poke
        self._stirred = asyncio.Event()

    def of(self, model: str) -> list[Kept]:
        """The engines of a model, those that go included."""
        return sorted((each for each in self.kept.values() if each.model == model), key=_order)

    def placed(self, model: str, devices: Sequence[str]) -> Kept | None:
        """An engine of the model that stays, on exactly these devices if there are any."""
        stays = (each for each in self.of(model) if not each.going)
        return next((each for each in stays if not devices or set(devices) == set(each.devices)), None)

    async def stirred(self) -> None:
        """Until an engine came, changed or went."""
        await self._stirred.wait()

    # -- coming
    def add(
        self,
        model: str,
        devices: tuple[str, ...],
        need: Need,
        origin: Origin,
        *,
        after: Iterable[Kept] = (),
        engine_id: str | None = None,
    ) -> Kept:
        """Give an engine its place; it starts when those of `after` are gone and a start is free."""
        entry = self._parts.catalogue.entry(model)
        if entry is None:
            raise LookupError(f"{model} left the catalogue between plan and deed")
        name = engine_id or self._free_id()
        engine = self._parts.maker.engine(name, self._parts.maker.spec(entry, devices), need, self._moved)
        kept = Kept(engine, need, origin, after={each.engine_id for each in after})
        self.kept[name], self.engines[name] = kept, engine
        fields = {"event": "engine_placed", "engine": name, "model": model, "devices": ",".join(devices)}
        log.info("engine_placed", extra=fields | {"why": origin, "after": ",".join(sorted(kept.after))})
        self._parts.tell("engine_placed", engine=name, model=model, devices=devices, why=origin)
        self._tell_fallback(kept)
        self._changed(engine)
        return kept

    def _tell_fallback(self, kept: Kept) -> None:
        gpus = [each.device for each in self._parts.devices.current if each.backend != "cpu"]
        if gpus and all(is_cpu(each) for each in kept.devices):
            fields = {"event": "cpu_fallback", "engine": kept.engine_id, "model": kept.model, "unused": ",".join(gpus)}
            log.warning("a model runs on the CPU of a node with GPUs", extra=fields)
            self._parts.tell("cpu_fallback", engine=kept.engine_id, model=kept.model, unused=gpus)

    def _free_id(self) -> str:
        number = 0
        while (name := f"engine-{number}") in self.kept or name in self.reserved:
            number += 1
        return name

    def launch(self) -> None:
        """Start those whose place is free, as many at once as the rules allow."""
        waits = [
            each for each in sorted(self.kept.values(), key=_order) if not (each.launched or each.after or each.going)
        ]
        loading = sum(each.launched and each.on_its_way for each in self.kept.values())
        for each in waits[: max(self._parts.rules.start_concurrency - loading, 0)]:
            each.launched = True
            each.engine.want()

    def drop_unstarted(self, kept: Kept) -> None:
        """Forget one that never ran."""
        del self.kept[kept.engine_id], self.engines[kept.engine_id]
        self._changed(kept.engine)

    # -- going
    def go(self, kept: Kept, reason: str, code: ReasonCode, *, grace_s: float = 0.0) -> None:
        """Stop an engine for good: it takes nothing new from now on, and has `grace_s` for what runs in it."""
        if kept.going is None and not self.closed:
            kept.going = reason
            self._parts.counter.usage.set_yielding(kept.engine_id, on=True)
            self._parts.tasks.start(f"stop {kept.engine_id}", self._gone(kept, code, grace_s))
            self._changed(kept.engine)

    async def _gone(self, kept: Kept, code: ReasonCode, grace_s: float) -> None:
        await self._until_idle(kept, grace_s)
        await kept.engine.stop(why=kept.going or "", code=code)
        self.kept.pop(kept.engine_id, None)
        self.engines.pop(kept.engine_id, None)
        await self._parts.devices.read()
        for each in self.kept.values():
            each.after.discard(kept.engine_id)
        fields = {"event": "engine_removed", "engine": kept.engine_id, "model": kept.model, "reason": kept.going}
        log.info("engine_removed", extra=fields)
        self._changed(kept.engine)

    async def _until_idle(self, kept: Kept, grace_s: float) -> None:
        until = self._parts.clock() + grace_s
        while self._parts.counter.usage.busy(kept.engine_id) and (left_s := until - self._parts.clock()) > 0:
            try:
                async with asyncio.timeout(min(left_s, IDLE_LOOK_S)):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    def let_yield(self, engines: Iterable[str]) -> None:
        """These take nothing new, and all others do again, but for those that go."""
        names = set(engines)
        for each in self.kept.values():
            on = each.engine_id in names
            if each.yielding != on and not each.going:
                each.yielding = on
                self._parts.counter.usage.set_yielding(each.engine_id, on=on)
                if on:
                    self._parts.tell("engine_yields", engine=each.engine_id, model=each.model)
                self._changed(each.engine)

    async def stop(self, *, leave: bool = False) -> None:
        """Stop all of them; with `leave`, those that are ready run on for the next worker."""
        self.closed = True
        if leave:
            await asyncio.gather(*(each.leave() for each in self.engines.values()))
        else:
            await asyncio.gather(*(each.stop(why="the worker ends", code="shutdown") for each in self.engines.values()))

    # -- changing
    def _moved(self, engine: Engine) -> None:
        kept = self.kept.get(engine.engine_id)
        if kept is not None and kept.engine is engine:
            if engine.state != kept.last_state:
                kept.last_state = engine.state
                self._entered(kept)
            if engine.state == "crashed":
                self._end_hopeless(kept)
        self._changed(engine)

    def _entered(self, kept: Kept) -> None:
        kept.shown = False
        kept.ready_at = self._parts.clock() if kept.engine.state == "ready" else None
        if kept.engine.state == "crashed":
            kept.failures += 1
        if kept.engine.state == "ready":
            kept.failures = 0
            self._parts.bars.lift(kept.model, kept.devices)
            self.on_ready(kept)
            self._parts.tasks.start(f"measure {kept.engine_id}", self._measure(kept))

    async def _measure(self, kept: Kept) -> None:
        """What it really took; from here on the devices show it, and its next plan goes by it."""
        await kept.engine.measure()
        kept.shown = kept.engine.state == "ready"
        await self._parts.needs.refresh([(kept.model, "cpu" if is_cpu(kept.devices[0]) else "gpu")])
        self._changed(kept.engine)

    def _end_hopeless(self, kept: Kept) -> None:
        told = kept.engine.snapshot()
        if kept.going or not (told.unfit or told.breaker_open or kept.failures >= self._parts.rules.give_up_after):
            return
        reason = told.reason or "its engine failed"
        if self.on_hopeless(kept, reason):
            self.go(kept, reason, "failed-to-start")
        elif not kept.retried:
            left_s = max((told.next_retry_at or 0.0) - time.time(), 0.0) if told.breaker_open else 0.0
            bar_s = self._parts.bars.put(kept.model, kept.devices, reason, left_s)
            fields = {"event": "model_barred", "model": kept.model, "devices": ",".join(kept.devices), "reason": reason}
            log.warning("a model is not tried again for a while", extra=fields | {"bar_s": round(bar_s, 1)})
            self.go(kept, reason, "failed-to-start")

    def _changed(self, engine: Engine) -> None:
        self.stir()
        self._parts.on_change(engine)
        self._poke()

    def stir(self) -> None:
        """Wake whoever waits for a change."""
        stirred, self._stirred = self._stirred, asyncio.Event()
        stirred.set()


def _stays(kept: Kept, reason: str) -> bool:
    return False


def _order(kept: Kept) -> tuple[int, str]:
    return engine_order(kept.engine_id)
