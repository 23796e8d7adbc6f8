"""Which models are in demand: heard from those who wait, or seen by looking at the line. Plain; the clock is handed in.

A demand that was heard lasts `DEMAND_FORGOTTEN_S`. A look at the backlog lasts until the next one (or `LOOK_LASTS_S`):
what stands in line at two looks in a row is in demand, and at once what nobody in the fleet asks for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from schemas.demand import DEMAND_FORGOTTEN_S, Demand

LOOK_EVERY_S: Final = 2.0
LOOK_LASTS_S: Final = 2 * LOOK_EVERY_S

Kind = Literal["cold", "spill"]


@dataclass(slots=True)
class _Want:
    """`since`: when those who wait began to, as far as is known; `cold_until` and `spill_until`: when it is
    forgotten."""

    since: float
    cold_until: float = 0.0
    spill_until: float = 0.0

    def lasts(self, now: float) -> bool:
        return now < max(self.cold_until, self.spill_until)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the line: how many wait for each model, and for which of them nobody asks."""

    waiting: Mapping[str, int]
    abandoned: Collection[str] = ()


class Appetite:
    """Owner of what is known of the fleet's demand for models."""

    def __init__(self) -> None:
        self._wants: dict[str, _Want] = {}
        self._seen: frozenset[str] = frozenset()
        self._seen_until = 0.0

    def heard(self, model: str, demand: Demand, now: float) -> bool:
        """Somebody says that a model is wanted. True if that is news."""
        return self._note(model, demand.kind, now - max(demand.oldest_s, 0.0), now + DEMAND_FORGOTTEN_S, now)

    def looked(self, look: Look, now: float) -> frozenset[str]:
        """What stands in line now. Returns the models that are newly in demand for it."""
        seen_twice = self._seen if now < self._seen_until else frozenset[str]()
        self._seen = frozenset(model for model, count in look.waiting.items() if count > 0)
        self._seen_until = now + LOOK_LASTS_S
        fresh: set[str] = set()
        for model in self._seen:
            kind: Kind | None = "cold" if model in look.abandoned else "spill" if model in seen_twice else None
            if kind is not None and self._note(model, kind, now - LOOK_EVERY_S, now + LOOK_LASTS_S, now):
                fresh.add(model)
        return frozenset(fresh)

    def seen(self, model: str, now: float) -> bool:
        """Whether the last look found somebody in line for the model."""
        return now < self._seen_until and model in self._seen

    def kind(self, model: str, now: float) -> Kind | None:
        """What is wanted of a model: its first engine, one more, or nothing. `spill` is the stronger wish."""
        want = self._wants.get(model)
        if want is None or not want.lasts(now):
            return None
        return "spill" if now < want.spill_until else "cold"

    def waited_s(self, model: str, now: float) -> float:
        """How long somebody has waited for it, as far as is known."""
        want = self._wants.get(model)
        return max(now - want.since, 0.0) if want is not None and want.lasts(now) else 0.0

    def wanted(self, now: float) -> list[str]:
        """Models in demand."""
        return [model for model, want in self._wants.items() if want.lasts(now)]

    def forget(self, now: float) -> list[str]:
        """Let go of what is not in demand any more, and return it."""
        over = [model for model, want in self._wants.items() if not want.lasts(now)]
        for model in over:
            del self._wants[model]
        return over

    def _note(self, model: str, kind: Kind, since: float, until: float, now: float) -> bool:
        want = self._wants.get(model)
        was = self.kind(model, now)
        if want is None or not want.lasts(now):
            want = self._wants[model] = _Want(since)
        want.since = min(want.since, since)
        if kind == "cold":
            want.cold_until = max(want.cold_until, until)
        else:
            want.spill_until = max(want.spill_until, until)
        return self.kind(model, now) != was
