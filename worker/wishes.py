"""Which models somebody wants one more engine of, and since when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from worker.kept import Origin

HELD_WISH_S: Final = 10.0
"""A wish for a held request is forgotten when nobody has repeated it for this long: the request is served or gone."""
PATIENT: Final = frozenset[Origin](("preload",))
"""Such wishes have nobody stopped or asked to yield."""


@dataclass(slots=True)
class Wish:
    """One more engine of `model`. `waited_s` counts from `since`, and for an operator as long as need be."""

    model: str
    origin: Origin
    since: float
    repeated: float
    devices: tuple[str, ...] = ()

    def waited_s(self, now: float) -> float:
        """How long it has waited."""
        return float("inf") if self.origin == "operator" else now - self.since


class Wishes:
    """Owner of the wishes, one a model at most, the oldest first."""

    def __init__(self) -> None:
        self._wishes: dict[str, Wish] = {}

    def __iter__(self) -> Iterator[Wish]:
        return iter(sorted(self._wishes.values(), key=lambda each: each.since))

    def __len__(self) -> int:
        return len(self._wishes)

    def of(self, model: str) -> Wish | None:
        """The wish for a model."""
        return self._wishes.get(model)

    def put(self, model: str, origin: Origin, since: float, now: float, devices: tuple[str, ...] = ()) -> bool:
        """Wish for it, again or for the first time, which is what it returns. An operator's wish replaces another."""
        wish = self._wishes.get(model)
        if wish is None or (origin == "operator" and wish.origin != origin):
            self._wishes[model] = Wish(model, origin, since, now, devices)
            return True
        wish.since, wish.repeated = min(wish.since, since), now
        return False

    def drop(self, model: str) -> None:
        """Nobody wishes for it any more, or it is met."""
        self._wishes.pop(model, None)

    def forget(self, now: float) -> None:
        """Drop what was not repeated."""
        for wish in tuple(self._wishes.values()):
            if wish.origin == "held" and now - wish.repeated > HELD_WISH_S:
                self.drop(wish.model)
