"""API keys of the worker's HTTP, held as SHA-256 digests and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Final

KEY_LIMIT_CHARS: Final = 512
_DIGEST: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,64}:)?sha256:([0-9a-fA-F]{64})")
_NAMED: Final = re.compile(r"[A-Za-z0-9._-]{1,64}:(\S+)")


class BadKey(ValueError):
    """A line that holds no usable key. The text names the place and never the key."""


class Keys:
    """The keys that may call. None at all: everybody may."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._digests = tuple(digests)

    def __len__(self) -> int:
        return len(self._digests)

    def allow(self, headers: Mapping[str, str]) -> bool:
        """Whether the request's key is one of ours."""
        if not self._digests:
            return True
        digest = hashlib.sha256(_presented(headers).encode("utf-8", "surrogateescape")).digest()
        hits = [hmac.compare_digest(known, digest) for known in self._digests]  # all: time must not tell which
        return any(hits)


def read_keys(lines: Iterable[str], place: str) -> Keys:
    """Keys as `key`, `name:key`, `sha256:<hex>` or `name:sha256:<hex>`; blank lines and `#` are skipped.

    Raises `BadKey`.
    """
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return Keys(_digest(line, f"{place}:{number}") for number, line in numbered if line and not line.startswith("#"))


def _digest(text: str, place: str) -> bytes:
    if hit := _DIGEST.fullmatch(text):
        return bytes.fromhex(hit[1])
    hit = _NAMED.fullmatch(text)
    key = hit[1] if hit else text
    if not key or any(char.isspace() for char in key):
        raise BadKey(f"{place}: no key; write 'key', 'name:key' or 'name:sha256:<64 hex digits>'")
    return hashlib.sha256(key.encode()).digest()


def _presented(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()[:KEY_LIMIT_CHARS]
    return headers.get("x-api-key", "").strip()[:KEY_LIMIT_CHARS]
