"""When a model is asked for beyond its line: nothing of it is there, or what is there is not enough for too long.

`decide` is plain; `Demands` adds when to send: at once for a request that finds nothing, then again while it lasts,
never more than one message a model in `DEMAND_EVERY_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.fleet import Model
from schemas.demand import DEMAND_EVERY_S, DEMAND_FORGOTTEN_S, Demand

_KEPT_S: Final = 10 * DEMAND_FORGOTTEN_S


@dataclass(frozen=True, slots=True)
class Waiting:
    """Requests for one model that no worker has, of all lanes; `oldest_s` is how long the first has waited."""

    count: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Supply:
    """What the fleet has for one model: `engines` that are ready or starting, slots that are free now, and slots of
    engines that are on their way."""

    engines: int = 0
    free: int = 0
    coming: int = 0

    @classmethod
    def of(cls, model: Model | None) -> Supply:
        """As the fleet's view has it. A model whose nodes have all gone has nothing."""
        if model is None or model.gone:
            return cls()
        engines = sum(one.ready or one.coming for one in model.servings)
        return cls(engines, max(model.slots_total - model.slots_busy, 0), model.slots_coming)


def decide(waiting: Waiting, supply: Supply, spill_after_s: float) -> Demand | None:
    """| engines ready or starting | oldest has waited  | more wait than slots are free or coming | demand  |
    |---------------------------|--------------------|-----------------------------------------|---------|
    | none                      | any time           |                                         | `cold`  |
    | some                      | < `spill_after_s`  |                                         | nothing |
    | some                      | ≥ `spill_after_s`  | no                                      | nothing |
    | some                      | ≥ `spill_after_s`  | yes                                     | `spill` |
    """
    if not waiting.count:
        return None
    if not supply.engines:
        return Demand(kind="cold", waiting=waiting.count, oldest_s=waiting.oldest_s)
    if waiting.oldest_s < spill_after_s or waiting.count <= supply.free + supply.coming:
        return None
    return Demand(kind="spill", waiting=waiting.count, oldest_s=waiting.oldest_s)


class Demands:
    """Which models were asked for, and when. `send(model, demand)` says whether it went out; synchronous, no clock."""

    def __init__(self, spill_after_s: float, send: Callable[[str, Demand], bool]) -> None:
        self._spill_after_s = spill_after_s
        self._send = send
        self._sent_at: dict[str, float] = {}

    def arrived(self, model: str, supply: Supply, now: float) -> None:
        """A new request: who could start an engine for it shall know at once."""
        self._tell(model, Waiting(1, 0.0), supply, now)

    def tick(self, waiting: Mapping[str, Waiting], supply: Callable[[str], Supply], now: float) -> None:
        """All that waits by now; at least once in `DEMAND_EVERY_S`."""
        for model, each in waiting.items():
            self._tell(model, each, supply(model), now)
        for model in [model for model, at in self._sent_at.items() if now - at > _KEPT_S]:
            del self._sent_at[model]

    def _tell(self, model: str, waiting: Waiting, supply: Supply, now: float) -> None:
        if now - self._sent_at.get(model, float("-inf")) < DEMAND_EVERY_S:
            return
        demand = decide(waiting, supply, self._spill_after_s)
        if demand is not None and self._send(model, demand):
            self._sent_at[model] = now
