"""What a model file is, from its header: architecture, size, context, and what it can do."""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from worker.gguf import Array, BadGguf, Gguf, Tensor, read_header

Capability = Literal["chat", "completion", "embedding", "rerank", "vision", "audio"]

_ENCODERS: Final = frozenset(
    ("bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert", "neo-bert", "t5encoder")
)
_POOLING_RANK: Final = 4
_POOLING_NONE: Final = 0
_WINDOW_PATTERNS: Final = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "exaone4": 4, "gpt-oss": 2}
"""llama.cpp's own: of so many layers the last sees the whole context, the others the sliding window. Kinds that are
not here, and say nothing in their header, are taken to see all of it."""
FIGURE_MOST: Final = 1 << 32
"""Of any count or length that a header tells: engines read them as 32 bits."""
SHARDS_LIMIT: Final = 512
NAME_CHARS: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHARD: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class Layer:
    """One attention layer: heads of its cache, and values a head in key and value. A layer without attention has no
    heads; `window_tokens` is set where it keeps no more than the last of them."""

    kv_heads: int
    key_length: int
    value_length: int
    window_tokens: int | None = None


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
    """Read and describe a model, all files of a split one. Raises `BadGguf`, or `OSError`."""
    first, *others = shards(path)
    header = _header(first)
    model, weight = described(header), _weight(header.tensors)
    parameters, tensor_bytes = header.parameters, header.tensor_bytes
    for shard in others:  # one header in memory at a time
        header = _header(shard)
        parameters, tensor_bytes = parameters + header.parameters, tensor_bytes + header.tensor_bytes
        weight.update(_weight(header.tensors))
    return replace(model, parameters=parameters, tensor_bytes=tensor_bytes, quantisation=_heaviest(weight))


def shards(path: Path) -> list[Path]:
    """All files of the model whose first one is `path`. Raises `BadGguf` if it is another one."""
    if (hit := _SHARD.fullmatch(path.name)) is None:
        return [path]
    if int(hit[2]) != 1 or int(hit[3]) < 1:
        raise BadGguf(f"it is part {int(hit[2])} of a split model; name the first, {hit[1]}-00001-of-{hit[3]}.gguf")
    if int(hit[3]) > SHARDS_LIMIT:
        raise BadGguf(f"it is split into {int(hit[3])} parts; at most {SHARDS_LIMIT} are read")
    return [path.with_name(f"{hit[1]}-{number:05}-of-{hit[3]}.gguf") for number in range(1, int(hit[3]) + 1)]


def _header(path: Path) -> Gguf:
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadGguf("it is no regular file")
    try:
        return read_header(path)
    except BadGguf as error:
        raise BadGguf(f"{path.name}: {error}") from error


def described(header: Gguf) -> ModelFile:
    """The description of a header."""
    architecture = _architecture(header)
    template = any(key.startswith("tokenizer.chat_template") for key in header.metadata)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return ModelFile(
        architecture=architecture,
        name=_name(header),
        parameters=header.parameters,
        quantisation=_heaviest(_weight(header.tensors)),
        tensor_bytes=header.tensor_bytes,
        context_tokens=_whole(header, f"{architecture}.context_length"),
        embedding_length=_whole(header, f"{architecture}.embedding_length") or 0,
        feed_forward_length=_largest(header, f"{architecture}.feed_forward_length"),
        vocabulary=tokens.count if isinstance(tokens, Array) else 0,
        layers=_layers(header, architecture),
        chat_template=template,
        capabilities=_capabilities(header, architecture, template),
    )


def _architecture(header: Gguf) -> str:
    told = header.metadata.get("general.architecture", "unknown")
    if not isinstance(told, str) or not _NAME.fullmatch(told):
        raise BadGguf("general.architecture is no name")
    return told


def _name(header: Gguf) -> str | None:
    told = "".join(each if each.isprintable() else " " for each in (_text(header, "general.name") or "")[:NAME_CHARS])
    return told.strip() or None


def _text(header: Gguf, key: str) -> str | None:
    value = header.metadata.get(key)
    return value if isinstance(value, str) else None


def _whole(header: Gguf, key: str) -> int | None:
    value = header.metadata.get(key)
    return _figure(key, value) if isinstance(value, int) and not isinstance(value, bool) else None


def _figure(key: str, value: object) -> int:
    """A count or length. Raises `BadGguf` for what cannot be one: an engine must not reckon with it."""
    if not isinstance(value, int) or not 0 <= value <= FIGURE_MOST:
        raise BadGguf(f"{key} is {str(value)[:40]}, which is no count")
    return value


def _largest(header: Gguf, key: str) -> int:
    value = header.metadata.get(key)
    if isinstance(value, Array):
        return max((_figure(key, item) for item in value.items), default=0)
    return _whole(header, key) or 0


def _each(header: Gguf, key: str, count: int, default: int) -> list[int]:
    """A figure a layer: given once for all, or as an array."""
    value = header.metadata.get(key)
    if isinstance(value, Array) and len(value.items) == count:
        return [_figure(key, item) for item in value.items]
    return [_whole(header, key) or default] * count


def _layers(header: Gguf, architecture: str) -> tuple[Layer, ...]:
    count = min(_whole(header, f"{architecture}.block_count") or 0, 4096)
    heads = _each(header, f"{architecture}.attention.head_count", count, 0)
    width = _whole(header, f"{architecture}.embedding_length") or 0
    per_head = width // max(heads) if heads and max(heads) > 0 else 0
    key = _whole(header, f"{architecture}.attention.key_length") or per_head
    value = _whole(header, f"{architecture}.attention.value_length") or per_head
    kv_key = f"{architecture}.attention.head_count_kv"
    shared = _each(header, kv_key, count, 0) if kv_key in header.metadata else heads
    windows = _windows(header, architecture, count)
    return tuple(Layer(kv, key, value, window) for kv, window in zip(shared, windows, strict=True))


def _windows(header: Gguf, architecture: str, count: int) -> list[int | None]:
    """Of each layer the sliding window, as llama.cpp takes it."""
    window = _whole(header, f"{architecture}.attention.sliding_window") or None
    told = header.metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(told, Array) and len(told.items) == count:
        return [window if slides else None for slides in told.items]
    pattern = told if isinstance(told, int) and told > 0 else _WINDOW_PATTERNS.get(architecture, 1)
    return [window if number % pattern < pattern - 1 else None for number in range(count)]


def _weight(tensors: Iterable[Tensor]) -> Counter[str]:
    """Bytes by type."""
    weight: Counter[str] = Counter()
    for tensor in tensors:
        weight[tensor.type_name] += tensor.size_bytes
    return weight


def _heaviest(weight: Counter[str]) -> str:
    """The type that most bytes have: what people mean by the name of a quantised file."""
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
