"""The models of one node, one entry each: what it serves, loaded or not, and what is on its way to its disks.

The same for `/v1/models` of the worker's own HTTP and for the verbs `models` and `check`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from schemas.errors import ModelNotFound
from schemas.model import CopyRecord
from schemas.node import Capabilities, Engine, Heartbeat
from worker.standing import Standing, standing


class ModelPages:
    """`models` are those that this node can serve, `copies` what is known of the files of those that were fetched."""

    def __init__(
        self,
        beat: Callable[[], Heartbeat],
        models: Callable[[], Collection[str]],
        copies: Callable[[], Mapping[str, CopyRecord]],
    ) -> None:
        self._beat = beat
        self._models = models
        self._copies = copies

    def listing(self) -> dict[str, Any]:
        """All, by name, in OpenAI's shape."""
        beat = self._beat()
        return {"object": "list", "data": [self._entry(model, beat) for model in self._names(beat)]}

    def one(self, model: str) -> dict[str, Any]:
        """One of them. Raises `ModelNotFound`."""
        beat = self._beat()
        if model not in self._names(beat):
            raise ModelNotFound(f"node {beat.node} has no model {model[:80]!r}", param="model")
        return self._entry(model, beat)

    def _names(self, beat: Heartbeat) -> list[str]:
        return sorted({*self._models(), *(each.model for each in beat.engines), *self._copies()})

    def _entry(self, model: str, beat: Heartbeat) -> dict[str, Any]:
        engines = [each for each in beat.engines if each.model == model]
        copy = self._copies().get(model)
        ready = [each for each in engines if each.state == "ready"]
        return {
            "id": model,
            "object": "model",
            "created": int(copy.since if copy is not None and not engines else beat.started_at),
            "owned_by": "puna",
            **self._standing(model, engines, beat).told(),
            "copy": copy.state if copy is not None else None,
            "engines": [each.engine for each in engines],
            "slots_total": sum(each.slots_total for each in ready),
            "slots_busy": sum(each.slots_busy for each in ready),
            "meta": _about(ready or engines).model_dump(mode="json", exclude_none=True),
        }

    def _standing(self, model: str, engines: Sequence[Engine], beat: Heartbeat) -> Standing:
        """What engines make of it counts for more than what its files do."""
        copy = self._copies().get(model)
        if not engines and copy is not None and model not in self._models() and copy.state != "Ready":
            return _coming(copy)
        offer = next((each for each in beat.offers if each.model == model), None)
        if not engines and offer is None and (copy is not None or model in self._models()):
            return Standing("unloaded")
        return standing(engines, offer)


def _coming(copy: CopyRecord) -> Standing:
    total, done = copy.progress.bytes_total, copy.progress.bytes_done
    return Standing(copy.state.lower(), copy.reason, done / total if total else None, copy.progress.eta_s)


def _about(engines: Sequence[Engine]) -> Capabilities:
    return engines[0].capabilities if engines else Capabilities()
