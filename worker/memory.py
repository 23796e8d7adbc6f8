"""How much memory a model will take on its device, before it is loaded.

The parts are llama.cpp's own: weights, KV cache, compute buffers, projector. Weights and cache follow from the header
to the byte; compute buffers are an estimate, as llama.cpp only knows them once its graph is built. `Correction` makes
up for that with what earlier loads were seen to take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.modelfile import Layer, ModelFile

CACHE_BYTES_PER_VALUE: Final[Mapping[str, float]] = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}
"""llama-server's `--cache-type-k` and `-v` → bytes a value."""

CACHE_PAD_TOKENS: Final = 256
"""llama.cpp rounds the cache of a sequence up to this."""
BATCH_TOKENS: Final = 512
"""llama-server's default `--ubatch-size`: rows of the activations that are alive at once."""
BACKEND_BYTES: Final = 64 << 20
"""What a backend takes beside the graph's buffers: its context, kernels and scratch."""
_LIVE_WIDTHS: Final = 8
"""Activations of embedding width that are alive at once at the widest point of a layer's graph, rounded up."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is to be served; `context_tokens` is what one request may use."""

    context_tokens: int
    slots: int
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    batch_tokens: int = BATCH_TOKENS
    projector_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by purpose."""

    weights_bytes: int
    cache_bytes: int
    compute_bytes: int
    projector_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.cache_bytes + self.compute_bytes + self.projector_bytes

    def text(self) -> str:
        """For a person who asks why a model does not fit."""
        parts = (
            ("weights", self.weights_bytes),
            ("KV cache", self.cache_bytes),
            ("compute", self.compute_bytes),
            ("projector", self.projector_bytes),
        )
        shown = " + ".join(f"{name} {gib(value)}" for name, value in parts if value)
        return f"{gib(self.total_bytes)} ({shown})"


@dataclass(frozen=True, slots=True)
class Correction:
    """What earlier loads of the same model and serving really took over what was planned; 1.0 where none is known."""

    ratio: float = 1.0

    def after(self, planned_bytes: int, measured_bytes: int) -> Correction:
        """The correction once a load was measured. Half old, half new: one odd measurement does not rule."""
        if planned_bytes <= 0 or measured_bytes <= 0:
            return self
        seen = min(max(measured_bytes / planned_bytes, 0.5), 3.0)
        return Correction(ratio=(self.ratio + seen) / 2)


NO_CORRECTION: Final = Correction()


def plan(model: ModelFile, serving: Serving) -> MemoryPlan:
    """The memory of one engine. Raises `ValueError` for a cache type that is none of llama-server's."""
    return MemoryPlan(
        weights_bytes=model.tensor_bytes,
        cache_bytes=cache_bytes(model, serving),
        compute_bytes=compute_bytes(model, serving),
        projector_bytes=serving.projector_bytes,
    )


def cache_bytes(model: ModelFile, serving: Serving) -> int:
    """The KV cache of all slots."""
    key, value = (_per_value(name) for name in (serving.cache_type_k, serving.cache_type_v))
    cells = sum(
        layer.kv_heads * (layer.key_length * key + layer.value_length * value) * _tokens(layer, serving)
        for layer in model.layers
    )
    return int(cells * serving.slots)


def _tokens(layer: Layer, serving: Serving) -> int:
    """What the cache of a layer holds of one sequence. A window slides over a batch at a time."""
    context, window = serving.context_tokens, layer.window_tokens
    held = context if window is None else min(context, window + serving.batch_tokens)
    return -(-held // CACHE_PAD_TOKENS) * CACHE_PAD_TOKENS


def compute_bytes(model: ModelFile, serving: Serving) -> int:
    """Compute buffers: the logits of a batch, the widest activations, and what the backend itself takes."""
    rows = min(serving.batch_tokens, serving.context_tokens * serving.slots)
    widths = model.vocabulary + _LIVE_WIDTHS * model.embedding_length + 2 * model.feed_forward_length
    return 4 * rows * widths + BACKEND_BYTES


def _per_value(name: str) -> float:
    if name not in CACHE_BYTES_PER_VALUE:
        raise ValueError(f"cache type {name[:20]!r} is none of {', '.join(CACHE_BYTES_PER_VALUE)}")
    return CACHE_BYTES_PER_VALUE[name]


def gib(count_bytes: int) -> str:
    """Bytes for people."""
    return f"{count_bytes / (1 << 30):.2f} GiB"
