"""What models were served from before they got other files or another profile, to go back to where the new ones do not
load: there an update had the old engine go first, and must not leave its model with none.

| happens                                         | the model is served from                                          |
|-------------------------------------------------|-------------------------------------------------------------------|
| an engine of the newest becomes ready           | the newest; what was before is forgotten, and may go from the disk|
| the newest fails to load, and has never loaded  | what was before: the newest is refused                            |
| the catalogue brings others                     | the newest                                                        |
| an operator unloads it                          | the newest, at the next load                                      |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from schemas.node import Offer
from worker.kept import Kept
from worker.parts import Parts
from worker.renewal import Renewal
from worker.roster import Roster
from worker.settings import ModelSettings
from worker.wishes import Wishes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refused:
    """What failed to load, and why."""

    entry: ModelSettings
    reason: str


class Formers:
    """Owner of what may be gone back to. `entry` tells how a model is served now."""

    def __init__(self, entries: Iterable[ModelSettings], entry: Callable[[str], ModelSettings | None]) -> None:
        self._newest = list(entries)
        self._entry = entry
        self._proved: dict[str, ModelSettings] = {}
        self._refused: dict[str, Refused] = {}

    def served(self) -> list[ModelSettings]:
        """The newest of each model, or what is gone back to."""
        return [self._proved[each.model] if self._is_refused(each) else each for each in self._newest]

    def bring(self, newest: Iterable[ModelSettings]) -> list[ModelSettings]:
        """Another list; what is to be served of it."""
        self._newest = list(newest)
        here = {each.model: each for each in self._newest}
        self._proved = {model: entry for model, entry in self._proved.items() if model in here}
        self._refused = {model: each for model, each in self._refused.items() if here.get(model) == each.entry}
        return self.served()

    def prove(self, entry: ModelSettings) -> None:
        """An engine that was made so is ready."""
        self._proved[entry.model] = entry

    def forget(self, model: str) -> None:
        """Nobody serves it: what was before need not stay."""
        self._proved.pop(model, None)
        self._refused.pop(model, None)

    def refuse(self, model: str, reason: str) -> bool:
        """What the model is served from now fails to load. Whether there is something to go back to."""
        entry, former = self._entry(model), self._proved.get(model)
        if entry is None or former is None or former == entry:
            return False
        self._refused[model] = Refused(entry, reason)
        return True

    def forgive(self, model: str) -> bool:
        """Somebody has seen to what was refused. Whether anything was."""
        return self._refused.pop(model, None) is not None

    def reason(self, model: str) -> str | None:
        """Why the newest is not served."""
        refused = self._refused.get(model)
        return None if refused is None else f"served as before its last change, which failed to load: {refused.reason}"

    @property
    def paths(self) -> Iterable[Path]:
        """Files that may be gone back to."""
        for model, former in self._proved.items():
            if former != self._entry(model):
                yield former.path
                yield from (Path(value) for value in former.flags.values() if isinstance(value, str) and "/" in value)

    def _is_refused(self, entry: ModelSettings) -> bool:
        refused = self._refused.get(entry.model)
        return refused is not None and refused.entry == entry and entry.model in self._proved


class GoingBack:
    """Hears how engines fare, and gives the catalogue what is to be served."""

    def __init__(self, parts: Parts, roster: Roster, wishes: Wishes, renewal: Renewal) -> None:
        self._parts = parts
        self._catalogue = parts.catalogue
        self._roster = roster
        self._wishes = wishes
        self._renewal = renewal
        self._owed: set[str] = set()
        self.formers = Formers(parts.catalogue.entries, parts.catalogue.entry)
        roster.on_ready, roster.on_hopeless = self._ready, self._hopeless

    def bring(self, models: Iterable[ModelSettings]) -> None:
        """Other models, or other files of them."""
        served = self.formers.bring(models)
        for entry in served:
            if self._catalogue.entry(entry.model) != entry and not self._in_use(entry.model):
                self.formers.forget(entry.model)
        self._catalogue.replace(served)

    def forgive(self, model: str) -> None:
        """An operator has put the model down: the next load tries the newest."""
        if self.formers.forgive(model):
            self._catalogue.replace(self.formers.served())

    def coming(self, model: str) -> bool:
        """Whether an engine of what the model has gone back to is still to get its place."""
        if self._wishes.of(model) is None:
            self._owed.discard(model)
        return model in self._owed

    def told(self, offer: Offer) -> Offer:
        """The offer, which says also why it is not one of the newest files."""
        reason = self.formers.reason(offer.model)
        if reason is None:
            return offer
        return offer.model_copy(update={"reason": f"{reason}; {offer.reason}" if offer.reason else reason})

    def _in_use(self, model: str) -> bool:
        return bool(self._roster.of(model)) or self._wishes.of(model) is not None

    def _ready(self, kept: Kept) -> None:
        self._owed.discard(kept.model)
        entry = self._made_as(kept)
        if entry is not None:
            self.formers.prove(entry)

    def _hopeless(self, kept: Kept, reason: str) -> bool:
        """Whether the model goes back, so that this engine is to go. One beside an engine that serves only waits."""
        if self._renewal.beside(kept) or self._made_as(kept) is None or not self.formers.refuse(kept.model, reason):
            return False
        fields = {"event": "model_went_back", "model": kept.model, "reason": reason}
        log.error("a changed model does not load: it is served as before", extra=fields)
        self._parts.tell("model_went_back", model=kept.model, reason=reason)
        now = self._parts.clock()
        self._wishes.put(kept.model, kept.origin, now, now)
        self._owed.add(kept.model)
        self._catalogue.replace(self.formers.served())
        return True

    def _made_as(self, kept: Kept) -> ModelSettings | None:
        """The entry of now, if the engine was made of that."""
        entry = self._catalogue.entry(kept.model)
        same = entry is not None and self._parts.maker.spec(entry, kept.devices) == kept.engine.spec
        return entry if same else None
