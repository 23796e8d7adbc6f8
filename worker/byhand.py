"""What operators do with engines by hand: load and unload them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from schemas.errors import ModelNotFound, Unavailable
from worker.engine import Engine
from worker.parts import Parts
from worker.plans import Evict, Fits, Wait, Yield
from worker.reasons import plan_text
from worker.roster import Roster
from worker.survey import Survey
from worker.wishes import Wishes

RETRY_AFTER_S: Final = 5.0
"""Said with a refusal of which nobody knows when it ends."""


class ByHand:
    """Orders to a keeper. `decide` has the keeper look at its wishes now."""

    def __init__(
        self, parts: Parts, survey: Survey, roster: Roster, wishes: Wishes, decide: Callable[[], None]
    ) -> None:
        self.on_unload: Callable[[str], None] = lambda _: None
        """Told of each model that is put down."""
        self.unloaded: set[str] = set()
        """Models that an operator has unloaded; their pin does not bring them back."""
        self._parts = parts
        self._survey = survey
        self._roster = roster
        self._wishes = wishes
        self._decide = decide

    def load_now(self, model: str, devices: Sequence[str] = ()) -> Engine | None:
        """The engine of a model, on exactly these devices if any are given; one is given its place if there is none.

        None: that must wait until a busy engine is idle or a turn is over; the wish stands. Raises `ModelNotFound`, and
        `Unavailable` with the plan's reason.
        """
        if self._parts.catalogue.entry(model) is None:
            raise ModelNotFound(f"{model} is not one of this node's models", param="model")
        self.unloaded.discard(model)
        if (found := self._roster.placed(model, devices)) is not None:
            return found.engine
        self._parts.bars.lift(model)
        self._refuse_hopeless(model, tuple(devices))
        self._wishes.put(model, "operator", self._parts.clock(), self._parts.clock(), tuple(devices))
        self._decide()
        found = self._roster.placed(model, devices)
        return found.engine if found is not None else None

    async def load(self, model: str, devices: Sequence[str] = ()) -> Engine:
        """`load_now`, and wait until the engine has its place. It is not ready then. Raises the same."""
        while (engine := self.load_now(model, devices)) is None:
            await self._roster.stirred()
        return engine

    def reason(self, model: str, devices: Sequence[str] = ()) -> str:
        """What an operator's load of the model would meet now."""
        census = self._survey.count()
        return plan_text(model, self._survey.plan(model, math.inf, tuple(devices), census), census.rooms)

    def _refuse_hopeless(self, model: str, devices: tuple[str, ...]) -> None:
        """Time and the end of requests may still help; nothing else will."""
        plan = self._survey.plan(model, math.inf, devices)
        hopeful = isinstance(plan, Fits | Evict | Yield) or (isinstance(plan, Wait) and plan.until_s is not None)
        if self._roster.closed or not hopeful:
            self._wishes.drop(model)
            reason = "this node is draining" if self._roster.closed else getattr(plan, "reason", "")
            raise Unavailable(reason, retry_after_s=RETRY_AFTER_S)

    def put_down(self, *, model: str | None = None, engine: str | None = None, reason: str) -> list[str]:
        """Begin to stop one engine, or all of a model: they take nothing new, and what runs in them may end within the
        grace. A model with no engine left is not started again by its pin. Raises `ModelNotFound`."""
        found = [each for each in self._roster.kept.values() if each.engine_id == engine or each.model == model]
        if not found:
            raise ModelNotFound(
                f"this node has no engine of {model or engine!r}", param="engine" if engine else "model"
            )
        for each in found:
            self._wishes.drop(each.model)
            self._roster.go(each, reason, "user-requested", grace_s=self._parts.rules.busy_grace_s)
            if all(other.going for other in self._roster.of(each.model)):
                self.unloaded.add(each.model)
        for name in {each.model for each in found}:
            self.on_unload(name)
        return [each.engine_id for each in found]

    async def unload(self, *, model: str | None = None, engine: str | None = None, reason: str) -> list[str]:
        """`put_down`, and wait until they are gone."""
        gone = self.put_down(model=model, engine=engine, reason=reason)
        while any(each in self._roster.kept for each in gone):
            await self._roster.stirred()
        return gone
