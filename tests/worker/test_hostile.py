"""Headers made to do harm: refused with a reason or right, never a crash, an endless loop or much memory.

`python -m bench.hostile` makes 100,000 of them; here are some of those, and the worst that could be thought of.
"""

from __future__ import annotations

import json
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import hostile
from worker import gguf, modelfile, safetensors
from worker.gguf import BadGguf, read_header
from worker.hubconfig import BadConfig, read_config
from worker.modelfile import describe
from worker.safetensors import BadSafetensors, read_safetensors

SPARSE = 400 << 20


@contextmanager
def cheap(most_bytes: int = 64 << 20, most_s: float = 20.0) -> Iterator[None]:
    """Little memory, and processor time that even a slow machine has."""
    tracemalloc.start()
    began = time.thread_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_bytes
        assert time.thread_time() - began < most_s
    finally:
        tracemalloc.stop()


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def head(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


def written(path: Path, *parts: bytes, size: int | None = None) -> Path:
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
        if size is not None:
            file.truncate(size)
    return path


def test_thousands_of_hostile_headers_are_refused_or_right(tmp_path: Path) -> None:
    tally = hostile.run(tmp_path, 2500, seed=1_000_000)
    assert tally.cases == 2500
    assert tally.right > 100
    assert tally.cases - tally.right > 1200
    assert len(tally.reasons) > 60, "they are too much alike"


@pytest.mark.parametrize(
    ("module", "name", "broken"),
    [
        (gguf, "_placed", lambda row, *_: gguf.Tensor(row[0], row[1], "F32", row[3], 1 << 40)),
        (modelfile, "_figure", lambda _, value: int(value)),
        (safetensors, "_check_apart", lambda _: 1 / 0),
        (gguf, "_alignment", lambda metadata: metadata.get("general.alignment", 32)),
    ],
    ids=["bounds", "figures", "overlaps", "alignment"],
)
def test_a_reader_with_a_fault_is_found_out(
    tmp_path: Path, monkeypatch: Any, module: Any, name: str, broken: Any
) -> None:
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(hostile.Harm, match="seed"):
        hostile.run(tmp_path, 4000)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000), st.integers(0, 40), st.integers(0, 40))
def test_any_bytes_are_refused_or_right(tmp_path: Path, data: bytes, tensors: int, pairs: int) -> None:
    path = written(tmp_path / "model.gguf", head(tensors, pairs), data)
    hostile.judged_gguf(path)
    path = written(tmp_path / "model", struct.pack("<Q", len(data)), data)
    hostile.judged_safetensors(path)
    hostile.judged_config(written(tmp_path / "config.json", data))


# -- the worst ---------------------------------------------------------------------------------------------------------
def long_string(path: Path) -> Path:
    """60 MB that would be 240 MB in memory."""
    key = text(b"tokenizer.huggingface.json") + struct.pack("<IQ", 8, 60 << 20) + "\U0001f4a3".encode()
    return written(path, head(0, 1), key, size=SPARSE)


def many_strings(path: Path) -> Path:
    """As many as there may be in arrays, and half as many again."""
    count = gguf.WALKED_LIMIT_ITEMS // 2
    array = struct.pack("<IIQ", 9, 8, count)
    with path.open("wb") as file:
        file.write(head(0, 3))
        for name in (b"a", b"b", b"c"):
            file.write(text(name) + array)
            file.seek(count * 8, 1)
        file.truncate(SPARSE)
    return path


def empty_arrays(path: Path) -> Path:
    """Arrays of 4,096 arrays of nothing, eight thousand times."""
    inner = struct.pack("<IQ", 8, 0) * gguf.ARRAY_KEPT_ITEMS
    pairs = (text(b"k%d" % n) + struct.pack("<IIQ", 9, 9, gguf.ARRAY_KEPT_ITEMS) + inner for n in range(2000))
    return written(path, head(0, 2000), *pairs)


def many_tensors(path: Path) -> Path:
    """As many as there may be, each with the longest shape."""
    rows = (text(b"t%d" % n) + struct.pack("<I4QIQ", 4, 1, 1, 1, 1 << 62, 0, 32 * n) for n in range(gguf.TENSORS_LIMIT))
    return written(path, head(gguf.TENSORS_LIMIT, 0), *rows, size=SPARSE)


def many_keys(path: Path) -> Path:
    """As many as there may be, each with a long name and a kept array."""
    value = struct.pack("<IIQ", 9, 4, 400) + bytes(1600)
    pairs = (text(b"%05d" % n + b"k" * 1000) + value for n in range(gguf.PAIRS_LIMIT))
    return written(path, head(0, gguf.PAIRS_LIMIT), *pairs)


def many_bombs(path: Path) -> Path:
    """Strings that take four times their size in memory, as a character of them is wide."""
    text_ = text("\U0001f4a3".encode() + b"x" * (gguf.STRING_KEPT_BYTES - 4))
    pairs = (text(b"k%d" % n) + struct.pack("<I", 8) + text_ for n in range(120))
    return written(path, head(0, 120), *pairs)


@pytest.mark.parametrize("make", [long_string, many_strings, empty_arrays, many_tensors, many_keys, many_bombs])
def test_the_largest_headers_cost_little(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that walk over what they do not keep are walked a part of the way: counting memory is slow."""
    monkeypatch.setattr(gguf, "WALKED_LIMIT_ITEMS", 200_000)
    path = make(tmp_path / "model.gguf")
    with cheap():
        try:
            read_header(path)
        except BadGguf as error:
            assert len(str(error)) < 400


def test_a_long_string_is_kept_in_part(tmp_path: Path) -> None:
    header = read_header(long_string(tmp_path / "model.gguf"))
    assert len(str(header.metadata["tokenizer.huggingface.json"])) <= gguf.STRING_KEPT_BYTES


def test_a_model_in_a_hundred_thousand_parts_is_not_looked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "m-00001-of-99999.gguf", head(0, 0), size=100)
    with pytest.raises(BadGguf, match="at most"):
        describe(path)


FIGURES = {
    "an array of words": struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"b"),
    "not a number": struct.pack("<IIQ2f", 9, 6, 2, float("nan"), float("inf")),
    "less than nothing": struct.pack("<IIQ2i", 9, 5, 2, -1, -1),
    "one that is too large": struct.pack("<IQ", 10, 1 << 63),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_a_figure_that_is_none_is_refused(tmp_path: Path, figure: str) -> None:
    pairs = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")
    pairs += text(b"llama.block_count") + struct.pack("<II", 4, 2)
    pairs += text(b"llama.attention.head_count") + FIGURES[figure]
    with pytest.raises(BadGguf, match="no count"):
        describe(written(tmp_path / "model.gguf", head(0, 3), pairs, size=500))


@pytest.mark.parametrize("name", [b"", b"a b", b"x" * 65, b"../a", b"a\nb"])
def test_an_architecture_that_is_no_name_is_refused(tmp_path: Path, name: bytes) -> None:
    pairs = text(b"general.architecture") + struct.pack("<I", 8) + text(name)
    with pytest.raises(BadGguf, match="no name"):
        describe(written(tmp_path / "model.gguf", head(0, 1), pairs, size=500))


# -- safetensors and config.json ---------------------------------------------------------------------------------------
def tensors(path: Path, rows: Any, data: int) -> Path:
    raw = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    return written(path, struct.pack("<Q", len(raw)), raw, bytes(data))


def row(dtype: str = "BF16", shape: tuple[int, ...] = (2, 3), place: tuple[int, ...] = (0, 12)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def test_a_safetensors_header_is_counted_exactly(tmp_path: Path) -> None:
    rows = {
        "__metadata__": {"format": "pt"},
        "a": row(),
        "b": row("F32", (5,), (12, 32)),
        "c": row("F4", (4,), (32, 34)),
    }
    told = read_safetensors(tensors(tmp_path / "m.safetensors", rows, 34))
    assert (told.parameters, told.tensor_bytes, told.tensors, told.dtype) == (15, 34, 3, "F32")


BAD: dict[str, tuple[Any, int, str]] = {
    "cut off": ({"a": row()}, 11, "beyond the end"),
    "overlap": ({"a": row(), "b": row(place=(4, 16))}, 16, "overlap"),
    "another size": ({"a": row(shape=(2, 4))}, 12, "does not take"),
    "backwards": ({"a": row(place=(12, 0))}, 12, "does not take"),
    "unknown type": ({"a": row("Q4")}, 12, "not known"),
    "one place": ({"a": row(place=(0,))}, 12, "no place"),
    "less than nothing": ({"a": row(shape=(-2, -3))}, 12, "no shape"),
    "a list": (b"[]", 0, "no JSON object"),
    "half": (b'{"a":', 0, "no JSON"),
    "deep": (b'{"a":' + b"[" * 5000, 0, "no JSON"),
    "a row of words": ({"a": "b"}, 0, "not known"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_safetensors_header_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    rows, data, reason = BAD[case]
    with pytest.raises(BadSafetensors, match=reason):
        read_safetensors(tensors(tmp_path / "m.safetensors", rows, data))


def test_the_largest_json_costs_little(tmp_path: Path) -> None:
    most = safetensors.HEADER_LIMIT_BYTES
    large = tensors(tmp_path / "a", b'{"a":[' + b"[]," * (most // 3 - 10) + b"[]]}", 0)
    longer = tensors(tmp_path / "b", b"{" + b" " * most, 0)
    config = written(tmp_path / "config.json", b'{"a":[' + b"{}," * 300_000 + b"{}]}")
    with cheap():
        with pytest.raises(BadSafetensors, match="not known"):
            read_safetensors(large)
        with pytest.raises(BadSafetensors, match="at most"):
            read_safetensors(longer)
        read_config(config)


def test_a_config_says_what_a_model_is(tmp_path: Path) -> None:
    told = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "text_config": {"max_position_embeddings": 32768, "hidden_size": 896},
        "num_hidden_layers": 24,
        "vocab_size": 151936,
        "torch_dtype": "bfloat16",
        "vision_config": {},
        "quantization_config": {"quant_method": "awq"},
    }
    config = read_config(written(tmp_path / "config.json", json.dumps(told).encode()))
    assert (config.model_type, config.context_tokens, config.embedding_length) == ("qwen2", 32768, 896)
    assert (config.layers, config.vocabulary, config.dtype, config.quantisation) == (24, 151936, "bfloat16", "awq")
    assert config.capabilities == ("chat", "completion", "vision")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"a": ' + b"[" * 5000, b"\xff\xfe", b" " * (1 << 21)])
def test_a_config_that_says_nothing_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(BadConfig):
        read_config(written(tmp_path / "config.json", raw))
