"""llama.cpp's router-mode view of the fleet: each model with one status, whatever the number of its engines.

The shapes follow the documentation of llama-server as of November 2026 (b11434; the model management that llama.cpp
took up with pull requests 17470 and 23976). A model that failed is `unloaded` with `failed`, as there. `sleeping` and
`downloading` never come up: an idle engine here is stopped whole, and nothing is fetched by a gateway.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.candidates import asked_by_bus, offer_of
from gateway.fleet import Fleet, Sighting
from schemas.node import Capabilities, Engine

StatusValue = Literal["unloaded", "loading", "loaded", "sleeping", "downloading"]
OWNER: Final = "llamacpp"
"""What tools made for llama.cpp look for."""
_STAGE: Final = "text_model"
_RANK: Final = {"ready": 0, "starting": 1, "stopping": 2, "crashed": 3, "stopped": 4}


@dataclass(frozen=True, slots=True)
class Status:
    """A model's state in llama.cpp's words. `reason` is ours."""

    value: StatusValue
    failed: bool = False
    progress: float | None = None
    reason: str | None = None

    def data(self) -> dict[str, Any]:
        """The `status` object of `GET /models`."""
        told: dict[str, Any] = {"value": self.value, "args": []}
        told |= {"failed": True} if self.failed else {}
        told |= {"progress": progress_data(self.progress)} if self.progress is not None else {}
        return told | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True)
class Known:
    """A model that somebody serves or has on disk."""

    model: str
    status: Status
    nodes: tuple[str, ...]
    """With an engine of it."""
    on_disk: tuple[str, ...]
    """Without one, and able to start it."""
    slots_total: int
    slots_busy: int
    created: int
    capabilities: Capabilities


def progress_data(progress: float) -> dict[str, Any]:
    """How far a load is, as llama-server tells it."""
    return {"stages": [_STAGE], "current": _STAGE, "value": progress}


def known_models(fleet: Fleet) -> dict[str, Known]:
    """Every model of the nodes that live, by name."""
    sightings = [one for one in fleet.nodes.values() if asked_by_bus(one.beat)]
    names = {engine.model for one in sightings for engine in one.beat.engines}
    names |= {offer.model for one in sightings for offer in one.beat.offers}
    return {name: _known(name, sightings) for name in sorted(names)}


def listing(known: Mapping[str, Known]) -> dict[str, Any]:
    """The answer to `GET /models`."""
    return {"object": "list", "data": [entry(model) for model in known.values()]}


def entry(known: Known) -> dict[str, Any]:
    """One model of the list."""
    can, about = known.capabilities.can, known.capabilities
    inputs = ["text"] + ["image"] * ("vision" in can) + ["audio"] * ("audio" in can)
    return {
        "id": known.model,
        "aliases": [],
        "tags": [],
        "object": "model",
        "owned_by": OWNER,
        "created": known.created,
        "status": known.status.data(),
        "architecture": {"input_modalities": inputs, "output_modalities": ["text"]},
        "source": "preset",
        "can_remove": False,
        "meta": {
            "n_ctx": about.context_tokens,
            "n_ctx_train": about.trained_context_tokens,
            "n_params": about.parameters,
            "size": about.size_bytes,
        },
        "puna": {
            "nodes": list(known.nodes),
            "on_disk": list(known.on_disk),
            "slots_total": known.slots_total,
            "slots_busy": known.slots_busy,
        },
    }


def _known(model: str, sightings: Iterable[Sighting]) -> Known:
    having = [(one.beat, engine) for one in sightings for engine in one.beat.engines if engine.model == model]
    offering = [one.beat for one in sightings if offer_of(one.beat, model) is not None]
    nodes = tuple(sorted({beat.node for beat, _ in having}))
    ready = [engine for beat, engine in having if engine.state == "ready" and not beat.draining]
    about = (ready or [engine for _, engine in having])[:1]
    started = [beat.started_at for beat, _ in having] or [beat.started_at for beat in offering]
    return Known(
        model=model,
        status=_status([engine for _, engine in having], bool(ready)),
        nodes=nodes,
        on_disk=tuple(sorted(beat.node for beat in offering if beat.node not in nodes)),
        slots_total=sum(engine.slots_total for engine in ready),
        slots_busy=sum(engine.slots_busy for engine in ready),
        created=int(min(started)),
        capabilities=about[0].capabilities if about else Capabilities(),
    )


def _status(engines: list[Engine], serving: bool) -> Status:
    if serving:
        return Status("loaded")
    if not engines:
        return Status("unloaded")
    nearest = min(engines, key=lambda engine: _RANK[engine.state])
    if nearest.state == "starting":
        return Status("loading", progress=nearest.progress, reason=nearest.reason)
    if nearest.state == "ready":
        return Status("unloaded", reason="its node is draining")
    return Status("unloaded", failed=nearest.state == "crashed", reason=nearest.reason)
