"""Reading what tools and the kernel write: numbers with units, files that may not be there, and words for "unknown"."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Final, cast

UNKNOWN: Final = frozenset({"", "n/a", "[n/a]", "na", "none", "null", "not supported", "[not supported]", "unknown"})
MIB: Final = 1 << 20
_NUMBER: Final = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*([A-Za-z%]*)\s*")
_SIZES: Final = {"b": 1, "k": 1 << 10, "m": MIB, "g": 1 << 30, "t": 1 << 40}
_DIGITS: Final = 20


def text(value: Any) -> str | None:
    """A word or two of a tool or a driver; `None` for its ways to say that it does not know."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return None
    shown = "".join(character for character in value if character.isprintable()).strip()[:200]
    return None if shown.lower() in UNKNOWN else shown


def number(value: Any) -> float | None:
    """`45`, `"45 W"`, `{"value": 45, "unit": "W"}` → 45.0; `None` for what is no number."""
    return _parts(value)[0]


def whole(value: Any) -> int | None:
    """The same for counts."""
    found = number(value)
    return None if found is None else int(found)


def size(value: Any, unit: str = "m") -> int | None:
    """Bytes. Vendors write MB and mean MiB; `unit` is meant where none is written."""
    found, written = _parts(value)
    factor = _SIZES.get((written or unit)[:1].lower())
    return None if found is None or found < 0 or factor is None else int(found * factor)


def first(*values: float | None) -> float | None:
    """The first that is known."""
    return next((value for value in values if value is not None), None)


def inside(value: Any, *path: str) -> Any:
    """What lies at `path` in parsed JSON; `None` where the way ends."""
    for name in path:
        if not isinstance(value, dict):
            return None
        value = cast(dict[str, Any], value).get(name)
    return value


def parsed(document: str | None) -> Any:
    """JSON, after whatever warnings a tool wrote before it; `None` for what is none."""
    start = re.search(r"^[\[{]", document or "", re.MULTILINE)
    if document is None or start is None:
        return None
    try:
        return json.JSONDecoder().raw_decode(document, start.start())[0]
    except (ValueError, RecursionError):
        return None


def line_of(file: Path) -> str | None:
    """The first line of a small file of the kernel; `None` if it is not there or cannot be read now."""
    try:
        with file.open(errors="replace") as opened:
            return opened.readline(4096).strip()
    except OSError:
        return None


def whole_of(file: Path) -> int | None:
    """A number in such a file."""
    line = line_of(file) or ""
    return int(line) if line.isascii() and line.isdigit() and len(line) <= _DIGITS else None


def scaled_of(file: Path, divisor: float) -> float | None:
    """A number in such a file, in a larger unit."""
    value = line_of(file) or ""
    found = number(value)
    return None if found is None else found / divisor


def _parts(value: Any) -> tuple[float | None, str]:
    if isinstance(value, bool) or value is None:
        return None, ""
    if isinstance(value, int | float):
        return (float(value) if math.isfinite(value) else None), ""
    if isinstance(value, dict):
        found = _parts(inside(value, "value"))
        unit = inside(value, "unit")
        return found[0], unit if isinstance(unit, str) else found[1]
    hit = _NUMBER.fullmatch(value) if isinstance(value, str) and len(value) < 64 else None
    return (float(hit[1]), hit[2]) if hit else (None, "")
