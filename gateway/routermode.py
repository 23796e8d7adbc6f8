"""llama.cpp's router-mode view of the fleet: each model with one status, whatever the number of its engines.

The shapes follow the documentation of llama-server as of November 2026 (b11434; the model management that llama.cpp
took up with pull requests 17470 and 23976). A model that failed is `unloaded` with `failed`, as there. `sleeping` never
comes up: an idle engine here is stopped whole. A download is one by the source of the model, with all its files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from gateway.candidates import asked_by_bus, offer_of
from gateway.fleet import Sighting
from gateway.models import file_of
from gateway.ondisk import COMING, OnDisk
from gateway.shelf import Stored
from gateway.view import Moment
from schemas.errors import InvalidRequest
from schemas.model import CopyProgress
from schemas.node import Capabilities, Engine
from schemas.source import parse_source

StatusValue = Literal["unloaded", "loading", "loaded", "sleeping", "downloading"]
OWNER: Final = "llamacpp"
"""What tools made for llama.cpp look for."""
_STAGE: Final = "text_model"
_RANK: Final = {"ready": 0, "starting": 1, "stopping": 2, "crashed": 3, "stopped": 4}


@dataclass(frozen=True, slots=True)
class Download:
    """How far the files of a model are; `total` is 0 while it is not known."""

    source: str
    done: int
    total: int

    def data(self) -> dict[str, Any]:
        """As llama-server tells it."""
        return {self.source: {"done": self.done, "total": self.total}}


@dataclass(frozen=True, slots=True)
class Status:
    """A model's state in llama.cpp's words. `reason` is ours."""

    value: StatusValue
    failed: bool = False
    progress: float | None = None
    reason: str | None = None
    download: Download | None = None

    def data(self) -> dict[str, Any]:
        """The `status` object of `GET /models`."""
        told: dict[str, Any] = {"value": self.value, "args": []}
        told |= {"failed": True} if self.failed else {}
        told |= {"progress": progress_data(self.progress)} if self.progress is not None else {}
        told |= {"progress": self.download.data()} if self.download is not None else {}
        return told | ({"reason": self.reason} if self.reason else {})


@dataclass(frozen=True, slots=True)
class Known:
    """A model that somebody serves or has on disk."""

    model: str
    status: Status
    nodes: tuple[str, ...]
    """With an engine of it."""
    on_disk: tuple[str, ...]
    """Without one, and with its files."""
    slots_total: int
    slots_busy: int
    created: int
    capabilities: Capabilities
    removable: bool = False
    """It was fetched, so it can be deleted; what a node's own settings name cannot."""


def progress_data(progress: float) -> dict[str, Any]:
    """How far a load is, as llama-server tells it."""
    return {"stages": [_STAGE], "current": _STAGE, "value": progress}


def known_models(moment: Moment) -> dict[str, Known]:
    """Every model of the nodes that live, and those on their way to one, by name."""
    sightings = [one for one in moment.fleet.nodes.values() if asked_by_bus(one.beat)]
    names = {engine.model for one in sightings for engine in one.beat.engines}
    names |= {offer.model for one in sightings for offer in one.beat.offers}
    names |= {name for name in moment.shelf.models if _shown(moment.disk(name))}
    return {name: _known(name, sightings, moment) for name in sorted(names)}


def _shown(disk: OnDisk | None) -> bool:
    return disk is not None and disk.state != "deleting"


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
        "source": "cache" if known.removable else "preset",
        "can_remove": known.removable,
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


def _known(model: str, sightings: Iterable[Sighting], moment: Moment) -> Known:
    having = [(one.beat, engine) for one in sightings for engine in one.beat.engines if engine.model == model]
    offering = [one.beat for one in sightings if offer_of(one.beat, model) is not None]
    nodes = tuple(sorted({beat.node for beat, _ in having}))
    ready = [engine for beat, engine in having if engine.state == "ready" and not beat.draining]
    about = (ready or [engine for _, engine in having])[:1]
    started = [beat.started_at for beat, _ in having] or [beat.started_at for beat in offering]
    stored, disk = moment.stored(model), moment.disk(model)
    on_disk = {beat.node for beat in offering} | set(disk.ready if disk else ())
    return Known(
        model=model,
        status=_status([engine for _, engine in having], bool(ready), stored, disk),
        nodes=nodes,
        on_disk=tuple(sorted(on_disk - set(nodes))),
        slots_total=sum(engine.slots_total for engine in ready),
        slots_busy=sum(engine.slots_busy for engine in ready),
        created=int(min(started, default=0)),
        capabilities=about[0].capabilities if about else _of_file(stored),
        removable=stored is not None and not _in_place(stored),
    )


def _of_file(stored: Stored | None) -> Capabilities:
    file = file_of(stored)
    return Capabilities(
        trained_context_tokens=file.get("context_tokens"),
        parameters=file.get("parameters"),
        size_bytes=file.get("tensor_bytes"),
        architecture=file.get("architecture"),
        quantisation=file.get("quantisation"),
        can=tuple(file.get("capabilities") or ()),
    )


def _in_place(stored: Stored) -> bool:
    """Its files are where somebody else put them, and stay."""
    try:
        return parse_source(_source(stored)).in_place
    except InvalidRequest:
        return False


def _source(stored: Stored) -> str:
    told = [stored.record.source] if stored.record else [one.copy.source for one in stored.copies.values()]
    return next((source for source in told if source), stored.model)


def _status(engines: list[Engine], serving: bool, stored: Stored | None, disk: OnDisk | None) -> Status:
    if serving:
        return Status("loaded")
    if not engines:
        return Status("unloaded") if stored is None or disk is None else _status_on_disk(stored, disk)
    nearest = min(engines, key=lambda engine: _RANK[engine.state])
    if nearest.state == "starting":
        return Status("loading", progress=nearest.progress, reason=nearest.reason)
    if nearest.state == "ready":
        return Status("unloaded", reason="its node is draining")
    return Status("unloaded", failed=nearest.state == "crashed", reason=nearest.reason)


def _status_on_disk(stored: Stored, disk: OnDisk) -> Status:
    if disk.state in COMING:
        moving = [one.copy.progress for one in stored.copies.values() if one.copy.state in ("Downloading", "Verifying")]
        best = max(moving, key=lambda progress: progress.bytes_done, default=CopyProgress())
        download = Download(_source(stored), best.bytes_done, best.bytes_total or 0)
        return Status("downloading", reason=disk.reason, download=download)
    return Status("unloaded", failed=disk.state == "failed", reason=disk.reason)
