"""`config.json`, as model hubs have it beside weights, read as if an enemy had written it."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson

from worker.modelfile import FIGURE_MOST, Capability

LIMIT_BYTES: Final = 1 << 20
"""JSON takes up to forty times as much memory as text."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_CONTEXT: Final = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
_INNER: Final = ("text_config", "llm_config", "language_config", "thinker_config")


class BadConfig(ValueError):
    """The file says nothing that can be understood. The text says why."""


@dataclass(frozen=True, slots=True)
class HubConfig:
    """What it says; None where it does not."""

    model_type: str | None = None
    architecture: str | None = None
    context_tokens: int | None = None
    embedding_length: int | None = None
    layers: int | None = None
    vocabulary: int | None = None
    dtype: str | None = None
    quantisation: str | None = None
    capabilities: tuple[Capability, ...] = ()


def read_config(path: Path) -> HubConfig:
    """Raises `BadConfig`, or `OSError` if it cannot be read."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadConfig("it is no regular file")
    with path.open("rb") as file:
        text = file.read(LIMIT_BYTES + 1)
    if len(text) > LIMIT_BYTES:
        raise BadConfig(f"it has more than {LIMIT_BYTES} bytes")
    try:
        told: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadConfig(f"it is no JSON: {str(error)[:80]}") from error
    if not isinstance(told, dict):
        raise BadConfig("it is no JSON object")
    return _config(cast("dict[str, Any]", told))


def _config(told: dict[str, Any]) -> HubConfig:
    inner = (cast("dict[str, Any]", told[name]) for name in _INNER if isinstance(told.get(name), dict))
    both = (told, next(inner, dict[str, Any]()))
    listed = told.get("architectures")
    architecture = _name(cast("list[Any]", listed)[0]) if isinstance(listed, list) and listed else None
    quantised = told.get("quantization_config")
    method = cast("dict[str, Any]", quantised).get("quant_method") if isinstance(quantised, dict) else None
    return HubConfig(
        model_type=_name(told.get("model_type")),
        architecture=architecture,
        context_tokens=_count(both, *_CONTEXT),
        embedding_length=_count(both, "hidden_size", "n_embd", "d_model"),
        layers=_count(both, "num_hidden_layers", "n_layer", "num_layers"),
        vocabulary=_count(both, "vocab_size"),
        dtype=_name(next((each[key] for each in both for key in ("dtype", "torch_dtype") if key in each), None)),
        quantisation=_name(method),
        capabilities=_capabilities(told, architecture or ""),
    )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else None


def _count(both: tuple[dict[str, Any], ...], *names: str) -> int | None:
    found = (each.get(name) for each in both for name in names)
    return next((value for value in found if type(value) is int and 0 < value <= FIGURE_MOST), None)


def _capabilities(told: dict[str, Any], architecture: str) -> tuple[Capability, ...]:
    """By the class that would load it, as hubs name those."""
    beside: list[Capability] = []
    if "vision_config" in told:
        beside.append("vision")
    if "audio_config" in told:
        beside.append("audio")
    if "SequenceClassification" in architecture:
        return ("rerank",)
    if "CausalLM" in architecture or "ConditionalGeneration" in architecture:
        return ("chat", "completion", *beside)
    if architecture.endswith(("Model", "MaskedLM")):
        return ("embedding",)
    return tuple(beside)
