"""The header of a GGUF file, read as if an enemy had written it.

The format is llama.cpp's (docs/gguf.md of the ggml project): magic, version, two counts, key-value pairs, tensor table,
then tensor data at a given alignment. Engines have leaked memory over tensors that lie beyond the file, so every count,
length, offset and size is held against the file before an engine sees it.

Reading costs memory for what is kept only: long arrays are walked and counted, not built.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from sys import getsizeof
from typing import BinaryIO, Final

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
PAIRS_LIMIT: Final = 8_192
TENSORS_LIMIT: Final = 32_768
DIMENSIONS_LIMIT: Final = 4
KEY_LIMIT_BYTES: Final = 65_535
STRING_LIMIT_BYTES: Final = 64 << 20
STRING_KEPT_BYTES: Final = 256 << 10
"""Of a longer string (a tokenizer's whole file) only so much is kept; no template is as long."""
ARRAY_LIMIT_ITEMS: Final = 16 << 20
ARRAY_KEPT_ITEMS: Final = 4096
"""Arrays up to this length are kept (a figure a layer); longer ones (a vocabulary) are counted."""
WALKED_LIMIT_ITEMS: Final = 2 << 20
"""Strings in long arrays, of one header: each takes a step. Vocabularies with their merges have less than half."""
HEADER_LIMIT_BYTES: Final = 512 << 20
WINDOW_BYTES: Final = 1 << 20
ARRAY_DEPTH_LIMIT: Final = 2
KEPT_LIMIT_BYTES: Final = 16 << 20
"""What all keys, strings and kept arrays of one header may take in memory, as Python holds them."""
_ITEM_BYTES: Final = 40
_ARRAY_BYTES: Final = 160

Scalar = int | float | bool | str


class BadGguf(ValueError):
    """The file is no GGUF file, or not one that may be given to an engine. The text says what is wrong, and where."""


@dataclass(frozen=True, slots=True)
class Array:
    """An array value. `items` is empty when `count` is over `ARRAY_KEPT_ITEMS`."""

    count: int
    items: tuple[Scalar, ...]


Value = Scalar | Array


@dataclass(frozen=True, slots=True)
class Tensor:
    """One row of the tensor table; `offset` counts bytes from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a header says."""

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int
    file_bytes: int

    @property
    def parameters(self) -> int:
        """Weights in all, exactly: elements of every tensor."""
        return sum(prod(tensor.shape) for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors as they lie in the file."""
        return sum(tensor.size_bytes for tensor in self.tensors)


TENSOR_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""ggml type id → name, weights a block, bytes a block."""

_SCALARS: Final[Mapping[int, str]] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING: Final = 8
_ARRAY: Final = 9


def read_header(path: Path) -> Gguf:
    """The header of the file at `path`. Raises `BadGguf`, or `OSError` if it cannot be read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 24:
            raise BadGguf(f"{size} bytes are no GGUF file")
        return _parse(_Cursor(file, size))


class _Cursor:
    """A place in the file. Every step is checked against the file's end and the header's limit.

    The file is read window by window and not mapped: one that somebody shortens meanwhile would end the process.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self.end = min(size, HEADER_LIMIT_BYTES)
        self.at = 0
        self._file = file
        self._window = b""
        self._base = 0
        self._kept_bytes = 0
        self._walked_items = 0

    def view(self, start: int, count: int) -> tuple[bytes, int]:
        """Bytes that hold the `count` from `start` on, and where in them those begin."""
        if not self._base <= start <= start + count <= self._base + len(self._window):
            self._file.seek(start)
            self._window, self._base = self._file.read(max(count, WINDOW_BYTES)), start
            if len(self._window) < count:
                raise BadGguf(f"it ends at byte {start + len(self._window)}: it became shorter while it was read")
        return self._window, start - self._base

    def keep(self, count_bytes: int) -> None:
        """Account for what stays in memory."""
        self._kept_bytes += count_bytes
        if self._kept_bytes > KEPT_LIMIT_BYTES:
            raise BadGguf(f"its metadata takes more than {KEPT_LIMIT_BYTES} bytes")

    def walk(self, count_items: int) -> None:
        """Account for items that are stepped over one by one."""
        self._walked_items += count_items
        if self._walked_items > WALKED_LIMIT_ITEMS:
            raise BadGguf(f"its arrays have more than {WALKED_LIMIT_ITEMS} strings")

    def skip(self, count: int) -> int:
        """Where the `count` bytes begin that are stepped over."""
        start = self.at
        if count > self.end - start:
            raise BadGguf(f"the header ends in the middle of a value at byte {start}")
        self.at = start + count
        return start

    def take(self, form: str) -> Scalar:
        layout = struct.Struct("<" + form)
        value: Scalar = layout.unpack_from(*self.view(self.skip(layout.size), layout.size))[0]
        return value

    def whole(self, form: str) -> int:
        return int(self.take(form))

    def bounded(self, what: str, limit: int) -> int:
        count = self.whole("Q")
        if count > limit:
            raise BadGguf(f"{what} is {count}; at most {limit} are allowed")
        return count

    def string(self, what: str, limit_bytes: int) -> str:
        length = self.bounded(f"the length of {what}", limit_bytes)
        kept = min(length, STRING_KEPT_BYTES)
        window, start = self.view(self.skip(length), kept)
        text = window[start : start + kept].decode("utf-8", "replace")
        self.keep(getsizeof(text))
        return text


def _parse(cursor: _Cursor) -> Gguf:
    window, start = cursor.view(cursor.skip(4), 4)
    if window[start : start + 4] != MAGIC:
        raise BadGguf("it does not begin with 'GGUF'")
    version = cursor.whole("I")
    if version not in VERSIONS:
        raise BadGguf(f"its version is {version}; {' and '.join(map(str, VERSIONS))} are known")
    tensor_count = cursor.bounded("the number of tensors", TENSORS_LIMIT)
    pair_count = cursor.bounded("the number of metadata pairs", PAIRS_LIMIT)
    metadata = _pairs(cursor, pair_count)
    rows = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = _alignment(metadata)
    data_offset = -(-cursor.at // alignment) * alignment
    tensors = _checked(rows, data_offset, alignment, cursor.size)
    return Gguf(version, metadata, tensors, data_offset, cursor.size)


def _pairs(cursor: _Cursor, count: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string("a key", KEY_LIMIT_BYTES)
        if key in metadata:
            raise BadGguf(f"the key {key[:80]!r} stands twice")
        metadata[key] = _value(cursor, cursor.whole("I"), key, ARRAY_DEPTH_LIMIT)
    return metadata


def _value(cursor: _Cursor, kind: int, key: str, depth: int) -> Value:
    if (form := _SCALARS.get(kind)) is not None:
        return cursor.take(form)
    if kind == _STRING:
        return cursor.string(f"the value of {key[:80]!r}", STRING_LIMIT_BYTES)
    if kind == _ARRAY and depth:
        return _array(cursor, key, depth)
    raise BadGguf(f"the value of {key[:80]!r} has type {kind}, nested or unknown")


def _array(cursor: _Cursor, key: str, depth: int) -> Array:
    kind = cursor.whole("I")
    count = cursor.bounded(f"the length of {key[:80]!r}", ARRAY_LIMIT_ITEMS)
    cursor.keep(_ARRAY_BYTES)
    if (form := _SCALARS.get(kind)) is not None:
        start = cursor.skip(count * struct.calcsize("<" + form))
        if count > ARRAY_KEPT_ITEMS:
            return Array(count, ())
        cursor.keep(count * _ITEM_BYTES)
        layout = struct.Struct(f"<{count}{form}")
        return Array(count, layout.unpack_from(*cursor.view(start, layout.size)))
    if kind == _STRING:
        return _strings(cursor, key, count)
    if count > ARRAY_KEPT_ITEMS:
        raise BadGguf(f"{key[:80]!r} holds {count} arrays; at most {ARRAY_KEPT_ITEMS} are allowed")
    for _ in range(count):
        _value(cursor, kind, key, depth - 1)
    return Array(count, ())


def _strings(cursor: _Cursor, key: str, count: int) -> Array:
    if count <= ARRAY_KEPT_ITEMS:
        what = f"an item of {key[:80]!r}"
        return Array(count, tuple(cursor.string(what, KEY_LIMIT_BYTES) for _ in range(count)))
    cursor.walk(count)
    unpack: Callable[[bytes, int], tuple[int]] = struct.Struct("<Q").unpack_from
    window, base, at = b"", cursor.at, cursor.at
    for _ in range(count):
        if at - base + 8 > len(window):
            if at + 8 > cursor.end:
                raise BadGguf(f"the header ends in the middle of {key[:80]!r}")
            window, offset = cursor.view(at, 8)
            base = at - offset
        at += 8 + unpack(window, at - base)[0]
    cursor.skip(at - cursor.at)
    return Array(count, ())


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string("a tensor's name", KEY_LIMIT_BYTES)
    dimensions = cursor.whole("I")
    if not 0 < dimensions <= DIMENSIONS_LIMIT:
        raise BadGguf(f"tensor {name[:80]!r} has {dimensions} dimensions; 1 to {DIMENSIONS_LIMIT} are allowed")
    shape = tuple(cursor.whole("Q") for _ in range(dimensions))
    return name, shape, cursor.whole("I"), cursor.whole("Q")


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise BadGguf("general.alignment is no power of two from 8 to 1048576")
    return alignment


def _checked(
    rows: list[tuple[str, tuple[int, ...], int, int]], data_offset: int, alignment: int, file_bytes: int
) -> tuple[Tensor, ...]:
    tensors = [_placed(row, data_offset, alignment, file_bytes) for row in rows]
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise BadGguf("two tensors have one name")
    last = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset < last:
            raise BadGguf(f"tensor {tensor.name[:80]!r} overlaps another")
        last = tensor.offset + tensor.size_bytes
    return tuple(tensors)


def _placed(row: tuple[str, tuple[int, ...], int, int], data_offset: int, alignment: int, file_bytes: int) -> Tensor:
    name, shape, kind, offset = row
    shown = repr(name[:80])
    if kind not in TENSOR_TYPES:
        raise BadGguf(f"tensor {shown} has the unknown type {kind}; a newer engine may know it, Puna does not")
    type_name, block_weights, block_bytes = TENSOR_TYPES[kind]
    if 0 in shape or shape[0] % block_weights:
        raise BadGguf(f"tensor {shown} has shape {shape}, which {type_name} cannot hold")
    size = prod(shape) // block_weights * block_bytes
    if offset % alignment:
        raise BadGguf(f"tensor {shown} is not aligned to {alignment} bytes")
    if data_offset + offset + size > file_bytes:
        raise BadGguf(f"tensor {shown} lies beyond the end of the file; the file is cut off or was tampered with")
    return Tensor(name, shape, type_name, offset, size)
