"""Who sits in which engine's slots. The one owner of these counts.

A slot is free if its engine is ready and does not yield, and, with `device_limit`, if none of the engine's devices has
as much pending as it may: what is in its engines, and what waits for a model that has an engine on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class EngineSlots:
    """The slots of one engine."""

    engine: str
    model: str
    total: int
    devices: tuple[str, ...]
    idle_since: float
    ready: bool = False
    yielding: bool = False
    busy: set[object] = field(default_factory=set[object])

    @property
    def free(self) -> int:
        """Slots that a request could have now, as far as the engine itself is concerned."""
        return max(self.total - len(self.busy), 0) if self.ready and not self.yielding else 0


class Slots:
    """Slots of all engines of this node, by engine and by model.

    `device_limit` is `max_pending_requests_per_device`; without it the slots alone bound what is taken.
    `waiting(model)` counts requests that wait on this node for a model; `on_yield(model)` is called when an engine of
    one begins or ends to yield.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        device_limit: int | None = None,
        waiting: Callable[[str], int] = lambda _: 0,
        on_yield: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.closed = False
        """The node drains: no slot is free for anything new."""
        self.by_model = ModelCounts(self)
        self._clock = clock
        self._device_limit = device_limit
        self._waiting = waiting
        self._on_yield = on_yield
        self._engines: dict[str, EngineSlots] = {}
        self._models: dict[str, list[EngineSlots]] = {}

    # -- which engines there are -------------------------------------------------------------------------------------
    def add(self, engine: str, model: str, total: int, devices: Collection[str] = ()) -> None:
        """A new engine, not ready yet. One that is there already under this id is replaced."""
        self.remove(engine)
        slots = EngineSlots(engine, model, total, tuple(devices), self._clock())
        self._engines[engine] = slots
        self._models.setdefault(model, []).append(slots)
        self._models[model].sort(key=lambda each: engine_order(each.engine))

    def remove(self, engine: str) -> None:
        """The engine is gone for good. Requests that are still in it may be released later, which is harmless."""
        slots = self._engines.pop(engine, None)
        if slots is None:
            return
        rest = [each for each in self._models[slots.model] if each is not slots]
        if rest:
            self._models[slots.model] = rest
        else:
            del self._models[slots.model]

    def set_ready(self, engine: str, ready: bool) -> None:
        """The engine came or went. Requests in it keep their slots until they end."""
        self._engines[engine].ready = ready

    def set_yielding(self, engine: str, on: bool) -> None:
        """The engine takes nothing new, for its device is wanted by another model; or it does again."""
        if (slots := self._engines.get(engine)) is not None and slots.yielding != on:
            slots.yielding = on
            self._on_yield(slots.model)

    @property
    def engines(self) -> Collection[str]:
        """Ids of the engines that have slots here, ready or not."""
        return self._engines.keys()

    @property
    def models(self) -> Collection[str]:
        """Models that have an engine here, ready or not."""
        return self._models.keys()

    def has(self, engine: str) -> bool:
        """Whether the engine is known."""
        return engine in self._engines

    def serves(self, model: str) -> bool:
        """Whether this node has an engine of the model, ready or not."""
        return model in self._models

    def ready(self, model: str) -> bool:
        """Whether an engine of the model can take requests, or could if a slot were free."""
        return any(each.ready for each in self._models.get(model, ()))

    # -- slots -------------------------------------------------------------------------------------------------------
    def free(self, model: str) -> int:
        """Slots of the model that requests could have now; 0 for a stranger."""
        engines = self._models.get(model)
        if engines is None or self.closed:
            return 0
        if self._device_limit is not None:
            return self._free_within_limit(engines)
        return sum(each.free for each in engines)

    def pick(self, model: str, prefer: str | None = None, without: Collection[str] = ()) -> str | None:
        """The engine whose slot a request should take: `prefer` if it has a free one, else the one with most free
        slots, of equals the first. None if there is none, those of `without` not counted."""
        if self.closed:
            return None
        best, most = None, 0
        for each in self._models.get(model, ()):
            free = self._free(each)
            if free > 0 and each.engine not in without:
                if each.engine == prefer:
                    return prefer
                if free > most:
                    best, most = each.engine, free
        return best

    def take(self, engine: str, holder: object) -> None:
        """Give a free slot to `holder`. Raises `RuntimeError` if there is none: whoever asks has decided before."""
        slots = self._engines.get(engine)
        if slots is None or self.closed or self._free(slots) < 1:
            raise RuntimeError(f"no free slot of {engine}")
        slots.busy.add(holder)

    def release(self, engine: str, holder: object) -> None:
        """`holder` is done. Releasing twice, or from an engine that is gone, is harmless."""
        slots = self._engines.get(engine)
        if slots is not None and holder in slots.busy:
            slots.busy.discard(holder)
            slots.idle_since = self._clock()

    def busy(self, engine: str) -> int:
        """Slots of the engine in use; 0 for a stranger."""
        slots = self._engines.get(engine)
        return 0 if slots is None else len(slots.busy)

    def idle_since(self, engine: str) -> float | None:
        """Since when nothing runs in it, by the clock; None while something does, and for a stranger."""
        slots = self._engines.get(engine)
        return None if slots is None or slots.busy else slots.idle_since

    @property
    def busy_total(self) -> int:
        """Slots in use, of all engines."""
        return sum(len(slots.busy) for slots in self._engines.values())

    # -- the limit of devices ----------------------------------------------------------------------------------------
    @property
    def device_limit(self) -> int | None:
        """How much may be pending on one device."""
        return self._device_limit

    def pending(self, device: str) -> int:
        """What is in the engines of the device, and what waits for their models."""
        here = [each for each in self._engines.values() if device in each.devices]
        return sum(len(each.busy) for each in here) + sum(map(self._waiting, {each.model for each in here}))

    def may_wait(self, model: str) -> bool:
        """Whether the limit lets one more request wait for the model on this node."""
        if self._device_limit is None:
            return True
        devices = {device for each in self._models.get(model, ()) for device in each.devices}
        return all(self.pending(device) < self._device_limit for device in devices)

    def _free(self, slots: EngineSlots) -> int:
        free = slots.free
        if self._device_limit is None or not free:
            return free
        return max(min((free, *(self._room(device, slots.model) for device in slots.devices))), 0)

    def _room(self, device: str, model: str) -> int:
        """What the device may still take of a model. Those who wait for this very model get its free slots first."""
        return (self._device_limit or 0) - self.pending(device) + self._waiting(model)

    def _free_within_limit(self, engines: Iterable[EngineSlots]) -> int:
        """Engines of one model that share a device share its room, too."""
        rooms: dict[str, int] = {}
        total = 0
        for each in engines:
            for device in each.devices:
                rooms.setdefault(device, self._room(device, each.model))
            free = max(min((each.free, *(rooms[device] for device in each.devices))), 0)
            for device in each.devices:
                rooms[device] -= free
            total += free
        return total

    def totals(self, model: str) -> tuple[int, int]:
        """Slots of all engines of the model, and those in use."""
        engines = self._models.get(model, ())
        return sum(each.total for each in engines), sum(len(each.busy) for each in engines)


class ModelCounts:
    """The counts by model, for metrics."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    @property
    def models(self) -> Collection[str]:
        """Models that have an engine here."""
        return self._slots.models

    def total(self, model: str) -> int:
        """Slots of the model."""
        return self._slots.totals(model)[0]

    def busy(self, model: str) -> int:
        """Those in use."""
        return self._slots.totals(model)[1]


def engine_order(engine: str) -> tuple[int, str]:
    """`engine-2` before `engine-10`."""
    number = engine.rpartition("-")[2]
    return (int(number) if number.isascii() and number.isdigit() else 0, engine)
