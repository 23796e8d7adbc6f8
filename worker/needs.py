"""What each model of the catalogue would take of a device, known without waiting: read ahead, and again."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Literal

from worker.loading import Needs, Unfit

log = logging.getLogger(__name__)

Kind = Literal["gpu", "cpu"]
AGAIN_S: Final = 10.0
"""How often a file that could not be used is looked at again."""

ReadNeeds = Callable[[str, Kind], Awaitable[Needs]]
"""Of a model on one kind of device. Raises `Unfit`."""


class KnownNeeds:
    """The last that was read of each model and kind of device, or why it cannot be used."""

    def __init__(self, read: ReadNeeds) -> None:
        self._read = read
        self._known: dict[tuple[str, Kind], Needs | str] = {}
        self._ages: dict[str, int] = {}

    def of(self, model: str, kind: Kind) -> Needs | str | None:
        """The needs, or the reason why there are none; None: not read yet."""
        return self._known.get((model, kind))

    @property
    def unusable(self) -> list[tuple[str, Kind]]:
        """Those whose files cannot be used."""
        return [key for key, known in self._known.items() if isinstance(known, str)]

    async def refresh(self, keys: Iterable[tuple[str, Kind]]) -> None:
        """Read these now, one after the other."""
        for model, kind in keys:
            age = self._ages.get(model, 0)
            try:
                found: Needs | str = await self._read(model, kind)
            except Unfit as unfit:
                found = unfit.reason
            if age == self._ages.get(model, 0):  # else it was read of files that are not the model's any more
                self._note(model, kind, found)

    def forget(self, models: Iterable[str]) -> None:
        """These have other files now: nothing is known of them until they are read."""
        gone = set(models)
        self._ages |= {model: self._ages.get(model, 0) + 1 for model in gone}
        self._known = {key: known for key, known in self._known.items() if key[0] not in gone}

    def keep_only(self, models: Iterable[str]) -> None:
        """Forget the others."""
        kept = set(models)
        self._ages = {model: age for model, age in self._ages.items() if model in kept}
        self._known = {key: known for key, known in self._known.items() if key[0] in kept}

    def _note(self, model: str, kind: Kind, found: Needs | str) -> None:
        if isinstance(found, str) and self._known.get((model, kind)) != found:
            fields = {"event": "model_unusable", "model": model, "reason": found}
            log.warning("model_unusable", extra=fields)
        self._known[model, kind] = found
