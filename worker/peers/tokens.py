"""Leave to take a file from this node: random, of one file, for some minutes, and nowhere but in memory."""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

TOKEN_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    until: float


class Tokens:
    """Those that were given out. All who ask for one file get the same one until half of its time is over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._given: dict[str, list[_Token]] = {}

    def grant(self, key: str) -> str:
        """One that is good for at least half of `TOKEN_S`."""
        now = self._clock()
        self._expire(now)
        given = self._given.setdefault(key, [])
        if not given or given[-1].until - now < TOKEN_S / 2:
            given.append(_Token(secrets.token_urlsafe(32), now + TOKEN_S))
        return given[-1].text

    def good(self, key: str, text: str) -> bool:
        """Whether it was given out for this file and is not over."""
        now, found = self._clock(), False
        for each in self._given.get(key, ()):
            found |= hmac.compare_digest(each.text.encode(), text.encode("utf-8", "replace")) and now < each.until
        return found

    def _expire(self, now: float) -> None:
        for key, given in list(self._given.items()):
            self._given[key] = [each for each in given if now < each.until]
            if not self._given[key]:
                del self._given[key]
