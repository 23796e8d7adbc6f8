"""`/v1/models` in OpenAI's shape, with llama-server's `meta`, and what is known of each model's state and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar, cast

from gateway.fleet import Model
from gateway.ondisk import OnDisk, fraction
from gateway.serving import Loading
from gateway.shelf import Shelved, Stored
from gateway.view import Moment
from schemas.errors import ModelNotFound
from schemas.node import Capabilities

T = TypeVar("T")
OWNER: Final = "puna"
_NOTHING: Final[Mapping[str, Any]] = {}
NODES_SHOWN: Final = 32
"""Of a model's nodes in the list of all; the page of one model names every one."""


def listing(moment: Moment) -> dict[str, Any]:
    """All models that a live node serves, has on its disk or fetches, and those that are wanted, by name."""
    return {"object": "list", "data": [entry(name, moment) for name in names(moment)]}


def names(moment: Moment) -> list[str]:
    """Their ids, sorted."""
    serving = {name for name, model in moment.fleet.models.items() if not model.gone}
    return sorted(serving | {name for name, stored in moment.shelf.models.items() if not _buried(stored)})


def _buried(stored: Stored) -> bool:
    """It was deleted, and nothing of it is left but the note of that."""
    return stored.record is not None and stored.record.deleting and not stored.copies and not stored.tasks


def one(moment: Moment, model: str) -> dict[str, Any]:
    """One model, with each of its copies. Raises `ModelNotFound`."""
    known = moment.fleet.models.get(model)
    stored = moment.stored(model)
    if (known is None or known.gone) and (stored is None or _buried(stored)):
        raise ModelNotFound(f"model {model[:200]!r} does not exist here; GET /v1/models lists what there is")
    told = entry(model, moment)
    if stored is not None:
        each = [_copy(one, node in moment.fleet.nodes) for node, one in stored.copies.items()]
        told["copies"] = {**(told["copies"] or {}), "each": each}
        told["record"] = stored.record.model_dump(mode="json", exclude_none=True) if stored.record else None
        told["file"] = dict(file_of(stored)) or None
    return told


def entry(name: str, moment: Moment) -> dict[str, Any]:
    """A model as OpenAI's clients and llama.cpp's tools read it, and what there is of it."""
    model = moment.fleet.models.get(name)
    model = None if model is None or model.gone else model
    stored, disk = moment.stored(name), moment.disk(name)
    about = _about(model, stored)
    state, loading = _state(model, disk)
    told = {
        "state": state,
        "reason": loading.reason if loading else None,
        "progress": loading.progress if loading else None,
        "eta_s": loading.eta_s if loading else None,
    }
    return {
        "id": name,
        "object": "model",
        "created": _created(model, stored),
        "owned_by": OWNER,
        "meta": about,
        "capabilities": _can(model, stored),
        "chat_template": _first(
            [*(one.chat_template for one in _capabilities(model)), file_of(stored).get("chat_template")]
        ),
        "context": about["n_ctx"] or about["n_ctx_train"],
        "quantisation": about["quantization"],
        "parameters": about["n_params"],
        "api_capabilities": file_of(stored).get("api_capabilities"),
        "memory_bytes": file_of(stored).get("memory_bytes"),
        **told,
        "source": _source(stored),
        "size_bytes": _size(stored),
        "copies": _copies(disk, stored),
        "puna": {
            **told,
            "nodes": list(model.nodes) if model else list(disk.ready if disk else ())[:NODES_SHOWN],
            "slots_total": model.slots_total if model else 0,
            "slots_busy": model.slots_busy if model else 0,
        },
    }


def _state(model: Model | None, disk: OnDisk | None) -> tuple[str, Loading | None]:
    """What an engine makes of it counts for more than what its files do."""
    if model is not None:
        return model.state, model.loading
    if disk is None:
        return "gone", None
    if disk.state != "ready":
        return disk.state, Loading(disk.state, disk.reason or disk.state, disk.progress, disk.eta_s)
    if disk.offered_late:
        return "unavailable", Loading("unavailable", "the nodes that have its files start no engine for it")
    return "unloaded", Loading("unloaded", "its files have just come")


def _created(model: Model | None, stored: Stored | None) -> int:
    if model is not None or stored is None:
        return model.created if model else 0
    return int(min((one.copy.since for one in stored.copies.values()), default=0))


def _about(model: Model | None, stored: Stored | None) -> dict[str, Any]:
    """llama-server's names; `n_ctx` is what one request may use wherever it goes. What no engine told is from the
    file."""
    capable = _capabilities(model)
    contexts = [one.context_tokens for one in capable if one.context_tokens is not None]
    file = file_of(stored)
    return {
        "n_ctx": min(contexts, default=None),
        "n_ctx_train": _first([*(one.trained_context_tokens for one in capable), file.get("context_tokens")]),
        "n_params": _first([*(one.parameters for one in capable), file.get("parameters")]),
        "size": _first([*(one.size_bytes for one in capable), file.get("tensor_bytes")]),
        "architecture": _first([*(one.architecture for one in capable), file.get("architecture")]),
        "quantization": _first([*(one.quantisation for one in capable), file.get("quantisation")]),
    }


def file_of(stored: Stored | None) -> Mapping[str, Any]:
    """What the model's file says of it, by the first copy that tells."""
    if stored is None:
        return _NOTHING
    return next((dict[str, Any](one.copy.config) for one in stored.copies.values() if one.copy.config), _NOTHING)


def _can(model: Model | None, stored: Stored | None) -> list[str]:
    """What every engine that tells can do: a request may go to any of them. Without an engine, what the file says."""
    told = [one.can for one in _capabilities(model) if one.can]
    if told:
        return [each for each in told[0] if all(each in can for can in told)]
    can = file_of(stored).get("capabilities")
    return cast("list[str]", can) if isinstance(can, list) else []


def _capabilities(model: Model | None) -> list[Capabilities]:
    """Of the engines that serve, where there are any."""
    if model is None:
        return []
    serving = [one for one in model.servings if one.ready] or model.servings
    return [one.engine.capabilities for one in serving]


def _source(stored: Stored | None) -> str | None:
    if stored is None:
        return None
    if stored.record is not None:
        return stored.record.source
    return _first(one.copy.source for one in stored.copies.values())


def _size(stored: Stored | None) -> int | None:
    if stored is None:
        return None
    sizes = [one.copy.size_bytes or one.copy.progress.bytes_total for one in stored.copies.values()]
    return max((size for size in sizes if size is not None), default=None)


def _copies(disk: OnDisk | None, stored: Stored | None) -> dict[str, Any] | None:
    """How many there are and should be; None for a model that only a node's own settings know."""
    if disk is None or stored is None:
        return None
    states = [one.copy.state for one in stored.copies.values()]
    return {
        "ready": len(disk.ready),
        "wanted": disk.wanted,
        "coming": sum(state in ("Pending", "Downloading", "Verifying", "Updating") for state in states),
        "failed": states.count("Failed"),
        "nodes": list(disk.ready)[:NODES_SHOWN],
        "speed_bytes_per_s": disk.speed_bytes_per_s,
        "next_retry_at": disk.next_retry_at,
    }


def _copy(one: Shelved, lives: bool) -> dict[str, Any]:
    copy = one.copy
    told = copy.model_dump(mode="json", exclude_none=True, exclude={"model", "config", "progress"})
    moving = copy.state in ("Downloading", "Verifying", "Updating")
    progress = copy.progress.model_dump(mode="json", exclude_none=True) | {"value": fraction(copy.progress)}
    return told | {"node_lives": lives} | ({"progress": progress} if moving else {})


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
