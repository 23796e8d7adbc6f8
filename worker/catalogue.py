"""The models that this node can serve: plain data that changes whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType

from worker.settings import ModelSettings


class Catalogue:
    """Owner of the list. It comes from the settings, and may be replaced as a whole while the node runs."""

    def __init__(self, models: Iterable[ModelSettings] = ()) -> None:
        self._models = _by_name(models)
        self._listeners: list[Callable[[], None]] = []

    @property
    def models(self) -> Collection[str]:
        """Their names, in the order of the settings: a view of now."""
        return self._models.keys()

    @property
    def entries(self) -> Collection[ModelSettings]:
        """All of them, in the same order."""
        return self._models.values()

    def entry(self, model: str) -> ModelSettings | None:
        """How the model is to be served; None if it is not of this node."""
        return self._models.get(model)

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each replacement."""
        self._listeners.append(listener)

    def replace(self, models: Iterable[ModelSettings]) -> None:
        """Another list, all at once."""
        self._models = _by_name(models)
        for listener in self._listeners:
            listener()


def _by_name(models: Iterable[ModelSettings]) -> Mapping[str, ModelSettings]:
    return MappingProxyType({each.model: each for each in models})
