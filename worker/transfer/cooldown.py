"""A source that wants to be left alone is left alone by the whole fleet.

Who is answered 429 puts a lease on the origin into the leases bucket, for as long as was asked. Everybody looks for it
before a request. The server's expiry ends it, so no two clocks are compared. Without a bus a node keeps to its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Final, Protocol

import orjson

from schemas.errors import PunaError
from schemas.subjects import Names

log = logging.getLogger(__name__)

ASK_LIMIT_S: Final = 1.0
LOOK_S: Final = 1.0
SPREAD: Final = 0.1
"""Afterwards each node waits up to this part of the time longer, so that they do not all come at once."""


class Entry(Protocol):
    """One value in the bucket."""

    @property
    def value(self) -> bytes: ...


class Leases(Protocol):
    """The leases bucket."""

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int: ...

    async def get(self, key: str) -> Entry | None: ...


class Cooldown:
    """Shared by all downloads of a node. `leases` may be given later: `share`."""

    def __init__(self, node: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._node = node
        self._clock = clock
        self._until_s: dict[str, float] = {}
        self._leases: Leases | None = None
        self._names = Names()
        self.on_begin: Callable[[str, float], None] | None = None
        """Told the origin and the seconds: for metrics."""

    def share(self, leases: Leases, names: Names) -> None:
        """Keep to it together with the fleet from now on."""
        self._leases, self._names = leases, names

    def left_s(self, origin: str) -> float:
        """What is left of a cool-down that this node knows of."""
        return max(self._until_s.get(origin, 0.0) - self._clock(), 0.0)

    async def begin(self, origin: str, seconds: float) -> None:
        """The origin asks for quiet. Never raises: without the bus the node itself keeps to it."""
        if seconds <= self.left_s(origin):
            return
        self._until_s[origin] = self._clock() + seconds
        log.warning("source_throttled", extra={"event": "source_throttled", "origin": origin, "wait_s": seconds})
        if self.on_begin is not None:
            self.on_begin(origin, seconds)
        if self._leases is None:
            return
        value = orjson.dumps({"origin": origin, "node": self._node, "seconds": seconds})
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                await self._leases.put(self._names.lease_cool(origin), value, ttl_s=max(seconds, 1.0))
        except (PunaError, TimeoutError) as error:
            self._unshared(error)

    async def over(self, origin: str) -> None:
        """Return when nobody in the fleet knows of a reason to leave the origin alone."""
        waited_s = 0.0
        while (left_s := max(self.left_s(origin), await self._elsewhere_s(origin))) > 0:
            await asyncio.sleep(left_s)
            waited_s += left_s
        if waited_s:
            await asyncio.sleep(random.uniform(0, min(waited_s * SPREAD, 5.0)))  # noqa: S311  no secret

    async def _elsewhere_s(self, origin: str) -> float:
        """How long until it is worth looking again: 0 when no other node has a lease."""
        if self._leases is None:
            return 0.0
        try:
            async with asyncio.timeout(ASK_LIMIT_S):
                return LOOK_S if await self._leases.get(self._names.lease_cool(origin)) is not None else 0.0
        except (PunaError, TimeoutError) as error:
            self._unshared(error)
            return 0.0

    def _unshared(self, error: Exception) -> None:
        fields = {"event": "cooldown_unshared", "error": type(error).__name__}
        log.info("cooldown_unshared", extra=fields)
