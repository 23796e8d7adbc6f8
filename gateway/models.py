"""`/v1/models` in OpenAI's shape, with llama-server's `meta` and what is known of each model's state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from gateway.fleet import Fleet, Model
from schemas.errors import ModelNotFound
from schemas.node import Capabilities

T = TypeVar("T")
OWNER = "puna"


def listing(fleet: Fleet) -> dict[str, Any]:
    """All models that a live node serves, or has on its disk."""
    return {"object": "list", "data": [entry(model) for model in fleet.models.values() if not model.gone]}


def one(fleet: Fleet, model: str) -> dict[str, Any]:
    """One model. Raises `ModelNotFound`."""
    known = fleet.models.get(model)
    if known is None or known.gone:
        raise ModelNotFound(f"model {model[:200]!r} does not exist here; GET /v1/models lists what there is")
    return entry(known)


def entry(model: Model) -> dict[str, Any]:
    """A model as OpenAI's clients and llama.cpp's tools read it."""
    return {
        "id": model.model,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "meta": _meta(model),
        "capabilities": _can(model),
        "puna": {
            "state": model.state,
            "reason": model.reason,
            "progress": model.loading.progress if model.loading else None,
            "eta_s": model.loading.eta_s if model.loading else None,
            "nodes": list(model.nodes),
            "slots_total": model.slots_total,
            "slots_busy": model.slots_busy,
        },
    }


def _meta(model: Model) -> dict[str, Any]:
    """llama-server's names; `n_ctx` is what one request may use wherever it goes."""
    capable = _capabilities(model)
    contexts = [one.context_tokens for one in capable if one.context_tokens is not None]
    return {
        "n_ctx": min(contexts, default=None),
        "n_ctx_train": _first(one.trained_context_tokens for one in capable),
        "n_params": _first(one.parameters for one in capable),
        "size": _first(one.size_bytes for one in capable),
        "architecture": _first(one.architecture for one in capable),
        "quantization": _first(one.quantisation for one in capable),
    }


def _can(model: Model) -> list[str]:
    """What every engine that tells can do: a request may go to any of them."""
    told = [one.can for one in _capabilities(model) if one.can]
    return [each for each in told[0] if all(each in can for can in told)] if told else []


def _capabilities(model: Model) -> list[Capabilities]:
    """Of the engines that serve, where there are any."""
    serving = [one for one in model.servings if one.ready] or model.servings
    return [one.engine.capabilities for one in serving]


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
