"""How long to wait before the next try. Plain: clock and dice are handed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

LONGEST_S: Final = 300.0
ASKED_LONGEST_S: Final = 86_400.0
"""A server that asks for more than a day is taken to mean a day."""


@dataclass(slots=True)
class Backoff:
    """Waits of one piece of work: full jitter under a bound that doubles (AWS Architecture Blog, "Exponential Backoff
    And Jitter", 2015). Progress starts it anew."""

    interval_s: float
    tries: int
    failures: int = 0

    def progress(self) -> None:
        """It goes on: failures before this do not count."""
        self.failures = 0

    def failed(self, dice: float, retry_after_s: float | None = None) -> float | None:
        """The wait in seconds after a failure, None when there were enough. A server's wish is kept, and spread a
        little after it; one for 0 s is none; one beyond `LONGEST_S` is not waited for here: None."""
        self.failures += 1
        if self.failures > self.tries:
            return None
        bound = min(self.interval_s * 2 ** min(self.failures - 1, 20), LONGEST_S)
        if not retry_after_s:
            return bound * dice
        return retry_after_s + min(retry_after_s * 0.1, bound) * dice if retry_after_s <= LONGEST_S else None


def retry_after_s(text: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a `Retry-After` asks for, given as a number or as a date. None if there is none that can be read."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), ASKED_LONGEST_S)
    try:
        until = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return min(max((until - (now or datetime.now(UTC))).total_seconds(), 0.0), ASKED_LONGEST_S)
