"""Who sits in which engine's slots. The one owner of these counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class ModelSlots:
    """The slots of one model's engine. `ready` says whether the engine can take requests."""

    total: int
    ready: bool = False
    busy: set[object] = field(default_factory=set[object])

    @property
    def free(self) -> int:
        """Slots that a request could have now."""
        return max(self.total - len(self.busy), 0) if self.ready else 0


class Slots:
    """Slots of all models of this node."""

    def __init__(self, totals: Mapping[str, int]) -> None:
        self._models = {model: ModelSlots(total) for model, total in totals.items()}
        self.closed = False
        """The node drains: no slot is free for anything new."""

    @property
    def models(self) -> Iterable[str]:
        """Models that have slots here."""
        return self._models.keys()

    @property
    def busy_total(self) -> int:
        """Slots in use, of all models."""
        return sum(len(slots.busy) for slots in self._models.values())

    def serves(self, model: str) -> bool:
        """Whether this node has an engine for the model, ready or not."""
        return model in self._models

    def free(self, model: str) -> int:
        """Slots of the model that a request could have now; 0 for a stranger."""
        slots = self._models.get(model)
        return 0 if slots is None or self.closed else slots.free

    def total(self, model: str) -> int:
        """Slots of the model's engine."""
        return self._models[model].total

    def busy(self, model: str) -> int:
        """Slots of the model in use."""
        return len(self._models[model].busy)

    def set_ready(self, model: str, ready: bool) -> None:
        """The engine came or went. Requests in it keep their slots until they end."""
        self._models[model].ready = ready

    def take(self, model: str, holder: object) -> None:
        """Give a free slot to `holder`. Raises `RuntimeError` if there is none: whoever asks has decided before."""
        if self.free(model) < 1:
            raise RuntimeError(f"no free slot of {model}")
        self._models[model].busy.add(holder)

    def release(self, model: str, holder: object) -> None:
        """`holder` is done. Releasing twice is harmless."""
        self._models[model].busy.discard(holder)
