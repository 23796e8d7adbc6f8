"""The header of a safetensors file, read as if an enemy had written it: eight bytes of length, then JSON.

Puna's engines do not load such files; they lie beside others, and what they are is told.
"""

from __future__ import annotations

import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, cast

import orjson

HEADER_LIMIT_BYTES: Final = 1 << 20
"""JSON takes up to forty times as much memory as text; headers of large models have half of this."""
TENSORS_LIMIT: Final = 65_536
DIMENSIONS_LIMIT: Final = 8
SIZE_LIMIT: Final = 1 << 48
DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64,
}  # fmt: skip
"""Kind of value → bits of one."""


class BadSafetensors(ValueError):
    """The file is no safetensors file, or not a whole one. The text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Safetensors:
    """What a header says. `dtype` is the kind of value that most bytes have."""

    parameters: int
    tensor_bytes: int
    tensors: int
    dtype: str


def read_safetensors(path: Path) -> Safetensors:
    """Raises `BadSafetensors`, or `OSError` if it cannot be read."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise BadSafetensors("it is no regular file")
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= size - 8:
            raise BadSafetensors(f"its header has {length} bytes, the file {size}")
        if length > HEADER_LIMIT_BYTES:
            raise BadSafetensors(f"its header has {length} bytes; at most {HEADER_LIMIT_BYTES} are read")
        text = file.read(length)
    if len(text) < length:
        raise BadSafetensors("it became shorter while it was read")
    return _told(text, size - 8 - length)


def _told(text: bytes, data_bytes: int) -> Safetensors:
    rows = _rows(text)
    weight: Counter[str] = Counter()
    parameters, places = 0, list[tuple[int, int]]()
    for name, row in rows.items():
        dtype, count, begin, end = _row(name, row)
        if end > data_bytes:
            raise BadSafetensors(f"tensor {name[:80]!r} lies beyond the end of the file; the file is cut off")
        weight[dtype] += end - begin
        parameters += count
        places.append((begin, end))
    _check_apart(places)
    return Safetensors(parameters, weight.total(), len(rows), weight.most_common(1)[0][0] if weight else "none")


def _rows(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise BadSafetensors("its header is no JSON object")
    try:
        told: Any = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadSafetensors(f"its header is no JSON: {str(error)[:80]}") from error
    rows = cast("dict[str, Any]", told)
    rows.pop("__metadata__", None)
    if len(rows) > TENSORS_LIMIT:
        raise BadSafetensors(f"it has {len(rows)} tensors; at most {TENSORS_LIMIT} are allowed")
    return rows


def _row(name: str, row: Any) -> tuple[str, int, int, int]:
    """Kind of value, how many, and where they begin and end."""
    fields = cast("dict[str, Any]", row) if isinstance(row, dict) else {}
    dtype, shape, place = fields.get("dtype"), _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise BadSafetensors(f"tensor {name[:80]!r} has a type that is not known")
    if shape is None or place is None or len(place) != 2:
        raise BadSafetensors(f"tensor {name[:80]!r} has no shape or no place")
    count, (begin, end) = prod(shape), place
    if end < begin or (end - begin) * 8 != count * DTYPE_BITS[dtype]:
        raise BadSafetensors(f"tensor {name[:80]!r} has {end - begin} bytes, which its shape does not take")
    return dtype, count, begin, end


def _counts(value: Any) -> list[int] | None:
    items = cast("list[Any]", value) if isinstance(value, list) else [None]
    fine = len(items) <= DIMENSIONS_LIMIT and all(type(item) is int and 0 <= item <= SIZE_LIMIT for item in items)
    return cast("list[int]", items) if fine else None


def _check_apart(places: list[tuple[int, int]]) -> None:
    last = 0
    for begin, end in sorted(places):
        if begin < last:
            raise BadSafetensors("two tensors overlap")
        last = end
