"""Times and sizes as people write them: `15s`, `10m`, `200MB`, `8G`."""

from __future__ import annotations

import re
from typing import Any, Final

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_TIME_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kmgt]?)(?:i?b)?")
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def seconds(value: Any) -> Any:
    """`15s`, `10m`, `1h30m`, `500ms` as seconds; anything else as it is, for whoever checks it next."""
    text = value.strip().lower() if isinstance(value, str) else ""
    if not _TIME.fullmatch(text):
        return value
    return sum(float(number) * _SECONDS[unit] for number, unit in _TIME_PART.findall(text))


def milliseconds(value: Any) -> Any:
    """The same in milliseconds."""
    found = seconds(value)
    return found * 1000 if found is not value else value


def size(value: Any) -> Any:
    """`8G`, `200MB`, `16 MiB` as bytes, always in powers of 1024; anything else as it is."""
    hit = _SIZE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if hit is None:
        return value
    number, unit = hit.groups()
    return int(float(number) * 1024 ** _POWERS[unit])


def reader(field: str) -> Any:
    """How text is read for a field whose name ends with its unit; None: as it is."""
    if field.endswith(("bytes", "bytes_per_s")):
        return size
    if field.endswith("_ms"):
        return milliseconds
    return seconds if field.endswith("_s") and not field.endswith("_per_s") else None
