"""What a KV bucket holds: entries, the marks that stand where an entry was, and what a key may look like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from schemas.errors import InvalidName

H_KV_OPERATION: Final = "KV-Operation"
H_MARKER_REASON: Final = "Nats-Marker-Reason"
H_EXPECTED_REVISION: Final = "Nats-Expected-Last-Subject-Sequence"
DELETED: Final = "DEL"
_REMOVALS: Final = (DELETED, "PURGE")
_KEY: Final = re.compile(r"[-/_=a-zA-Z0-9]+(?:\.[-/_=a-zA-Z0-9]+)*")
_BUCKET: Final = re.compile(r"[-_a-zA-Z0-9]+")
KEY_LIMIT_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One key's value at one revision. Never a deletion."""

    key: str
    value: bytes = field(repr=False)
    revision: int
    created_at: float
    """Unix time in seconds, by the server's clock."""


def is_removal(headers: Mapping[str, str] | None) -> bool:
    """Whether a stored message says that the key is gone: deleted, purged, or expired (the server's own marker)."""
    return bool(headers) and (H_MARKER_REASON in headers or headers.get(H_KV_OPERATION) in _REMOVALS)


def check_key(key: str) -> str:
    """The key as given. Raises `InvalidName` for one that a bucket does not take; encode names before."""
    if not _KEY.fullmatch(key) or len(key) > KEY_LIMIT_BYTES:
        raise InvalidName(f"key {key[:80]!r}: use 1 to {KEY_LIMIT_BYTES} of A-Za-z0-9-_=/ in parts joined by '.'")
    return key


def check_bucket(name: str) -> str:
    """The bucket's name as given. Raises `InvalidName`."""
    if not _BUCKET.fullmatch(name):
        raise InvalidName(f"bucket {name[:80]!r}: use letters, digits, '-' and '_'")
    return name
