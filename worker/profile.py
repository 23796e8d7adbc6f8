"""What a model's profile says to the memory plan: contexts to try, flags that change what is needed. Plain."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from worker.enginespec import EngineSpec, FlagValue
from worker.flags import flag_name
from worker.memory import BATCH_TOKENS, CACHE_BYTES_PER_VALUE, Serving
from worker.modelfile import ModelFile

CONTEXT_DEFAULT_TOKENS: Final = 8192
"""What one request may use of a model that was made for more, unless the operator says otherwise."""
CONTEXT_LEAST_TOKENS: Final = 2048
"""The default is halved down to this while it does not fit."""
_SIDE_FILES: Final = ("mmproj", "model-draft")
"""Flags that name a further model file, which is loaded beside the model's own."""
_ELSEWHERE: Final = frozenset(("n-cpu-moe", "cpu-moe", "override-tensor", "kv-offload", "no-kv-offload"))
_GPU_LAYERS: Final = ("n-gpu-layers", "gpu-layers")


def contexts(spec: EngineSpec, model: ModelFile, most_tokens: int | None = None) -> list[EngineSpec]:
    """The spec with each context that it may be started with, the best first, none above `most_tokens`."""
    if spec.context_tokens is not None or model.context_tokens is None:
        return [spec]
    tokens = min(model.context_tokens, most_tokens or CONTEXT_DEFAULT_TOKENS, CONTEXT_DEFAULT_TOKENS)
    choices = [tokens]
    while (tokens := tokens // 2) >= CONTEXT_LEAST_TOKENS:
        choices.append(tokens)
    return [replace(spec, context_tokens=each) for each in choices]


def partly_elsewhere(spec: EngineSpec, model: ModelFile) -> bool:
    """Whether flags leave a part of the model off its device: the plan is an upper bound then, and refuses nobody."""
    flags = {flag_name(name): value for name, value in spec.flags.items()}
    layers = (_count(flags.get(name), len(model.layers) + 1) for name in _GPU_LAYERS)
    return not _ELSEWHERE.isdisjoint(flags) or any(count <= len(model.layers) for count in layers)


def serving_of(spec: EngineSpec, side_bytes: int = 0) -> Serving:
    """The part of a spec that memory depends on."""
    flags = {flag_name(name): value for name, value in spec.flags.items()}
    return Serving(
        context_tokens=spec.context_tokens or 0,
        slots=spec.slots,
        cache_type_k=_cache_type(flags.get("cache-type-k")),
        cache_type_v=_cache_type(flags.get("cache-type-v")),
        batch_tokens=_count(flags.get("ubatch-size"), BATCH_TOKENS),
        projector_bytes=side_bytes,
    )


def _cache_type(value: FlagValue | None) -> str:
    """A type that is not known here is taken for the default, which is as large as any that saves memory."""
    return value if isinstance(value, str) and value in CACHE_BYTES_PER_VALUE else "f16"


def _count(value: FlagValue | None, default: int) -> int:
    return int(value) if isinstance(value, str) and value.isdecimal() else default


def side_files(spec: EngineSpec) -> list[str]:
    """Paths of the model files that flags name."""
    flags = {flag_name(name): value for name, value in spec.flags.items()}
    found = (flags.get(name) for name in _SIDE_FILES)
    return [value for value in found if isinstance(value, str)]
