"""Waiting for an event with a limit, and how long before the next try."""

from __future__ import annotations

import asyncio
import random
from typing import Final

BACKOFF_FIRST_S: Final = 0.02
BACKOFF_LONGEST_S: Final = 2.0


def backoff_s(failures: int) -> float:
    """Seconds to wait after `failures` (1, 2, 3…) in a row: doubling, with jitter, so that a fleet is not in step."""
    longest_s = min(BACKOFF_LONGEST_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 10))
    return longest_s * (0.5 + 0.5 * random.random())  # noqa: S311 jitter, not a secret


async def happened(event: asyncio.Event, timeout_s: float) -> bool:
    """Whether the event came in time."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
