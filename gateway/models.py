"""`/v1/models` in OpenAI's shape, with llama-server's `meta` and what is known of each model's state."""

from __future__ import annotations

from typing import Any

from gateway.fleet import Fleet, Model
from schemas.errors import ModelNotFound

OWNER = "puna"


def listing(fleet: Fleet) -> dict[str, Any]:
    """All models that a live node serves."""
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
        "puna": {
            "state": model.state,
            "reason": model.reason,
            "progress": max((one.engine.progress or 0.0 for one in model.servings), default=None)
            if model.state == "loading"
            else None,
            "nodes": sorted({one.node for one in model.servings}),
            "slots_total": model.slots_total,
            "slots_busy": model.slots_busy,
        },
    }


def _meta(model: Model) -> dict[str, Any]:
    capable = [one.engine.capabilities for one in model.servings]
    contexts = [one.context_tokens for one in capable if one.context_tokens is not None]
    return {
        "n_ctx": min(contexts, default=None),
        "n_params": next((one.parameters for one in capable if one.parameters is not None), None),
        "size": next((one.size_bytes for one in capable if one.size_bytes is not None), None),
    }
