"""Model files that are whole and valid, of any size and nearly no disk: what the worker reads is their header only."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

_PAIRS: Final[dict[str, str | int | tuple[str, ...]]] = {
    "general.architecture": "llama",
    "general.name": "Simulated",
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ("a", "b", "c"),
    "tokenizer.chat_template": "{{ messages }}",
}
_ALIGNMENT: Final = 32
_INT8: Final = 24
_STRING: Final = 8
_UINT32: Final = 4
_ARRAY: Final = 9
LEAST_BYTES: Final = 4096


def write(path: Path, size_bytes: int) -> Path:
    """A model of `size_bytes`, all of it one tensor; a file with holes, so that it takes next to nothing."""
    if size_bytes < LEAST_BYTES:
        raise ValueError(f"a model of {size_bytes} bytes: at least {LEAST_BYTES}")
    head = (
        b"GGUF" + struct.pack("<IQQ", 3, 1, len(_PAIRS)) + b"".join(_text(key) + _value(_PAIRS[key]) for key in _PAIRS)
    )
    table = _text("token_embd.weight") + struct.pack("<IQIQ", 1, size_bytes - 1024, _INT8, 0)
    data_offset = -(-len(head + table) // _ALIGNMENT) * _ALIGNMENT
    with path.open("wb") as file:
        file.write(head + table)
        file.truncate(data_offset + size_bytes - 1024)
    return path


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: str | int | tuple[str, ...]) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
