"""Bytes a second: what may be read now, and how long to read nothing after it. Plain; the clock is handed in."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

BURST_S: Final = 0.25
"""What a quiet bucket saves up: so much of a second."""


class TokenBucket:
    """Whoever took more than there was waits until the debt is paid, and so does who comes after: what all take
    together keeps to the rate, and readers of equal pieces get equal shares."""

    def __init__(self, bytes_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes_per_s: Final = bytes_per_s
        self._clock = clock
        self._level = 0.0
        self._at_s = clock()

    def take(self, count: int) -> float:
        """Account for bytes that were read. Returns the seconds to wait before the next."""
        now_s = self._clock()
        saved = self._level + max(now_s - self._at_s, 0.0) * self.bytes_per_s
        self._at_s = now_s
        self._level = min(saved, self.bytes_per_s * BURST_S) - count
        return max(-self._level / self.bytes_per_s, 0.0)


class Share:
    """The limits that hold for one source: the global one, its scheme's and its host's."""

    def __init__(self, buckets: tuple[TokenBucket, ...]) -> None:
        self._buckets = buckets

    @property
    def piece_bytes(self) -> int | None:
        """How much to read at once, so that a slow rate flows and does not come in gulps; None without a limit."""
        slowest = min((bucket.bytes_per_s for bucket in self._buckets), default=None)
        return None if slowest is None else max(slowest // 20, 4096)

    def take(self, count: int) -> float:
        """Account for bytes that were read. Returns the seconds to wait before the next."""
        return max((bucket.take(count) for bucket in self._buckets), default=0.0)


class Limits:
    """All limits of a node."""

    def __init__(
        self, bytes_per_s: int | None, per_source: Mapping[str, int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._all = TokenBucket(bytes_per_s, clock) if bytes_per_s else None
        self._sources = {name: TokenBucket(rate, clock) for name, rate in per_source.items()}

    def share(self, source: str, url: str) -> Share:
        """Those for a source's scheme and a URL's host."""
        own = [self._sources.get(name) for name in dict.fromkeys((source, urlsplit(url).hostname or ""))]
        return Share(tuple(bucket for bucket in (self._all, *own) if bucket is not None))
