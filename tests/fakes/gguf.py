"""Small model files that are whole and valid, for engines that read no model: `python tests/fakes/gguf.py FILE`.

`write(path, pairs)` adds metadata, or replaces what is there.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KINDS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}
CHAT: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Counting",
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "tokenizer.chat_template": "{{ messages }}",
}
"""A token of it takes 2 layers * 2 heads * (16 + 16) values * 2 bytes = 256 bytes of cache."""
PARAMETERS = 64 * 3


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(item) for item in value)
    if isinstance(value, list):
        return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
    kind, form = KINDS[type(value)]
    return struct.pack(f"<I{form}", kind, value)


def model(pairs: Mapping[str, Any] = CHAT) -> bytes:
    """A file with these pairs and one F32 tensor of 64 * 3."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs))
    head += b"".join(_text(key) + _value(value) for key, value in pairs.items())
    head += _text("token_embd.weight") + struct.pack("<I2QIQ", 2, 64, 3, 0, 0)
    return head + bytes(-len(head) % 32) + bytes(4 * PARAMETERS)


def write(path: Path, pairs: Mapping[str, Any] | None = None) -> Path:
    """The model above, with `pairs` added or in place of its own."""
    path.write_bytes(model(CHAT | dict(pairs or {})))
    return path


if __name__ == "__main__":
    write(Path(sys.argv[1]))
