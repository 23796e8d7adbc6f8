"""The GGUF header: read right for a real shape, refused with a reason for anything else, never at great cost."""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker import gguf
from worker.gguf import Array, BadGguf, read_header
from worker.modelfile import described

KINDS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, value: Any) -> bytes:
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return text(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(item) for item in value)
        return text(key) + struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
    kind, form = KINDS[type(value)]
    return text(key) + struct.pack(f"<I{form}", kind, value)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def model(
    pairs: dict[str, Any], rows: list[bytes], data: int, *, version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    tensors, metadata = counts or (len(rows), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, metadata)
    head += b"".join(pair(key, value) for key, value in pairs.items()) + b"".join(rows)
    return head + bytes(-len(head) % 32) + bytes(data)


PAIRS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "llama.block_count": 2,
    "llama.context_length": 4096,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [2, 1],
    "tokenizer.ggml.tokens": [f"t{number}" for number in range(5000)],
    "tokenizer.chat_template": "{{ messages }}",
}
ROWS = [tensor("a", (64, 2), 0, 0), tensor("b", (32, 4), 8, 512)]
GOOD = model(PAIRS, ROWS, 512 + 136)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Any]:
    def from_bytes(raw: bytes) -> Any:
        path = tmp_path / "model.gguf"
        path.write_bytes(raw)
        return read_header(path)

    return from_bytes


def test_a_good_header_is_read_as_it_is(read) -> None:
    header = read(GOOD)
    assert header.version == 3
    assert header.parameters == 64 * 2 + 32 * 4
    assert header.tensor_bytes == 512 + 136
    assert header.metadata["tokenizer.ggml.tokens"] == Array(5000, ())
    assert header.metadata["llama.attention.head_count_kv"] == Array(2, (2, 1))
    assert header.data_offset + header.tensor_bytes == header.file_bytes


def test_a_model_is_described_from_its_header(read) -> None:
    what = described(read(GOOD))
    assert (what.architecture, what.name, what.quantisation) == ("llama", "Tiny", "F32")
    assert (what.context_tokens, what.vocabulary, what.chat_template) == (4096, 5000, True)
    assert [(layer.kv_heads, layer.key_length, layer.value_length) for layer in what.layers] == [
        (2, 16, 16),
        (1, 16, 16),
    ]
    assert what.capabilities == ("chat", "completion")


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        ({"general.architecture": "llama"}, ("completion",)),
        ({"general.architecture": "bert", "bert.pooling_type": 1}, ("embedding",)),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, ("embedding",)),
        ({"general.architecture": "bert", "bert.pooling_type": 4}, ("rerank",)),
        ({"general.architecture": "clip", "clip.has_vision_encoder": True}, ("vision",)),
        ({"general.architecture": "clip", "clip.has_audio_encoder": True}, ("audio",)),
    ],
)
def test_what_a_model_can_do_is_read_off_its_header(read, pairs, wanted) -> None:
    assert described(read(model(pairs, [], 0))).capabilities == wanted


BAD = {
    "empty": (b"", "no GGUF"),
    "other magic": (b"GGML" + GOOD[4:], "begin with"),
    "version 1": (model(PAIRS, ROWS, 648, version=1), "version"),
    "cut in the header": (GOOD[:200], "ends in the middle"),
    "cut in the data": (GOOD[:-1], "beyond the end"),
    "more tensors than rows": (model(PAIRS, ROWS, 648, counts=(9, len(PAIRS))), "."),
    "2^63 tensors": (model(PAIRS, ROWS, 648, counts=(1 << 63, len(PAIRS))), "number of tensors"),
    "2^63 pairs": (model(PAIRS, ROWS, 648, counts=(2, 1 << 63)), "number of metadata"),
    "offset far away": (model(PAIRS, [tensor("a", (64, 2), 0, 1 << 62)], 512), "beyond the end"),
    "size that wraps": (model(PAIRS, [tensor("a", (1 << 62, 1 << 62, 1 << 62), 0, 0)], 512), "beyond the end"),
    "overlap": (model(PAIRS, [tensor("a", (64, 2), 0, 0), tensor("b", (64,), 0, 32)], 512), "overlaps"),
    "unaligned": (model(PAIRS, [tensor("a", (8,), 0, 5)], 512), "aligned"),
    "unknown type": (model(PAIRS, [tensor("a", (8,), 99, 0)], 512), "unknown type 99"),
    "no dimensions": (model(PAIRS, [tensor("a", (), 0, 0)], 512), "0 dimensions"),
    "many dimensions": (model(PAIRS, [tensor("a", (1,) * 9, 0, 0)], 512), "9 dimensions"),
    "block that does not fit": (model(PAIRS, [tensor("a", (33,), 8, 0)], 512), "cannot hold"),
    "two of one name": (model(PAIRS, [tensor("a", (8,), 0, 0), tensor("a", (8,), 0, 32)], 512), "one name"),
    "alignment 3": (model({"general.alignment": 3}, [], 0), "alignment"),
    "alignment 0": (model({"general.alignment": 0}, [], 0), "alignment"),
    "key twice": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + pair("a", 1) * 2, "twice"),
    "nested arrays": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQIQIQ", 9, 9, 1, 9, 1, 9, 1),
        "nested",
    ),
    "2^60 strings": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 8, 1 << 60), "length"),
    "string of 2^60": (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IQ", 8, 1 << 60), "length"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_with_the_reason(read, case) -> None:
    raw, reason = BAD[case]
    with pytest.raises(BadGguf, match=reason):
        read(raw)


@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 2**32))
def test_no_damage_to_a_header_does_more_than_be_refused(read, seed) -> None:
    dice = random.Random(seed)
    raw = bytearray(model({key: PAIRS[key] for key in list(PAIRS)[:7]}, ROWS, 648))
    for _ in range(dice.randint(1, 8)):
        at = dice.randrange(len(raw) - 648)
        raw[at : at + 8] = dice.choice(
            [b"\xff" * 8, bytes(8), dice.randbytes(8), struct.pack("<Q", dice.randrange(1 << 40))]
        )
    try:
        assert read(bytes(raw)).parameters >= 0
    except BadGguf as error:
        assert len(str(error)) < 400


def test_values_on_the_edge_of_what_is_read_at_once_are_whole(read, monkeypatch) -> None:
    monkeypatch.setattr("worker.gguf.WINDOW_BYTES", 13)
    assert read(GOOD) == read(GOOD)
    header = read(GOOD)
    assert header.parameters == 256
    assert header.metadata["tokenizer.ggml.tokens"] == Array(5000, ())
    assert header.metadata["tokenizer.chat_template"] == "{{ messages }}"


def test_a_file_that_is_shortened_while_it_is_read_is_refused(tmp_path, monkeypatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)
    pairs = gguf._pairs

    def shortened(cursor: Any, count: int) -> Any:
        path.write_bytes(GOOD[:100])
        return pairs(cursor, count)

    monkeypatch.setattr(gguf, "WINDOW_BYTES", 13)
    monkeypatch.setattr(gguf, "_pairs", shortened)
    with pytest.raises(BadGguf, match="it became shorter while it was read"):
        read_header(path)


def test_a_hostile_header_costs_little_memory(read) -> None:
    big = {f"k{number}": "x" * 60_000 for number in range(1000)}
    raw = model(big, [], 0)
    tracemalloc.start()
    try:
        with pytest.raises(BadGguf, match="more than"):
            read(raw)
        assert tracemalloc.get_traced_memory()[1] - len(raw) < 64 << 20
    finally:
        tracemalloc.stop()
