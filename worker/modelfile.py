"""What a model file is, from its header: architecture, size, context, and what it can do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from worker.gguf import Array, Gguf, read_header

Capability = Literal["chat", "completion", "embedding", "rerank", "vision", "audio"]

_ENCODERS: Final = frozenset(
    ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "t5encoder")
)
_POOLING_RANK: Final = 4
_POOLING_NONE: Final = 0


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention layer: heads of its cache, and values a head in key and value."""

    kv_heads: int
    key_length: int
    value_length: int


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model as its file describes itself. Sizes in bytes, lengths in tokens or values."""

    architecture: str
    name: str | None
    parameters: int
    quantisation: str
    tensor_bytes: int
    context_tokens: int | None
    embedding_length: int
    feed_forward_length: int
    vocabulary: int
    layers: tuple[Layer, ...]
    chat_template: bool
    capabilities: tuple[Capability, ...]


def describe(path: Path) -> ModelFile:
    """Read and describe. Raises `BadGguf`, or `OSError`."""
    return described(read_header(path))


def described(header: Gguf) -> ModelFile:
    """The description of a header."""
    architecture = _text(header, "general.architecture") or "unknown"
    template = any(key.startswith("tokenizer.chat_template") for key in header.metadata)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return ModelFile(
        architecture=architecture,
        name=_text(header, "general.name"),
        parameters=header.parameters,
        quantisation=_quantisation(header),
        tensor_bytes=header.tensor_bytes,
        context_tokens=_whole(header, f"{architecture}.context_length"),
        embedding_length=_whole(header, f"{architecture}.embedding_length") or 0,
        feed_forward_length=_largest(header, f"{architecture}.feed_forward_length"),
        vocabulary=tokens.count if isinstance(tokens, Array) else 0,
        layers=_layers(header, architecture),
        chat_template=template,
        capabilities=_capabilities(header, architecture, template),
    )


def _text(header: Gguf, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else None


def _whole(header: Gguf, key: str) -> int | None:
    value = header.metadata.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _largest(header: Gguf, key: str) -> int:
    value = header.metadata.get(key)
    if isinstance(value, Array):
        return max((int(item) for item in value.items), default=0)
    return _whole(header, key) or 0


def _each(header: Gguf, key: str, count: int, default: int) -> list[int]:
    """A figure a layer: given once for all, or as an array."""
    value = header.metadata.get(key)
    if isinstance(value, Array) and len(value.items) == count:
        return [int(item) for item in value.items]
    return [_whole(header, key) or default] * count


def _layers(header: Gguf, architecture: str) -> tuple[Layer, ...]:
    count = min(_whole(header, f"{architecture}.block_count") or 0, 4096)
    heads = _each(header, f"{architecture}.attention.head_count", count, 0)
    width = _whole(header, f"{architecture}.embedding_length") or 0
    per_head = width // max(heads) if heads and max(heads) > 0 else 0
    key = _whole(header, f"{architecture}.attention.key_length") or per_head
    value = _whole(header, f"{architecture}.attention.value_length") or per_head
    shared = _each(header, f"{architecture}.attention.head_count_kv", count, 0)
    return tuple(Layer(kv or own, key, value) for kv, own in zip(shared, heads, strict=True))


def _quantisation(header: Gguf) -> str:
    """The type that most bytes have: what people mean by the name of a quantised file."""
    weight: Counter[str] = Counter()
    for tensor in header.tensors:
        weight[tensor.type_name] += tensor.size_bytes
    return weight.most_common(1)[0][0] if weight else "none"


def _capabilities(header: Gguf, architecture: str, template: bool) -> tuple[Capability, ...]:
    if architecture == "clip":
        sees = header.metadata.get("clip.has_vision_encoder") is True
        hears = header.metadata.get("clip.has_audio_encoder") is True
        return (*(("vision",) if sees else ()), *(("audio",) if hears else ()))
    pooling = _whole(header, f"{architecture}.pooling_type")
    if pooling == _POOLING_RANK:
        return ("rerank",)
    if architecture in _ENCODERS or pooling not in (None, _POOLING_NONE):
        return ("embedding",)
    return ("chat", "completion") if template else ("completion",)
