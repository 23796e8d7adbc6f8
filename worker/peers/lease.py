"""Who asks the source for a file: one node at a time, as long as bytes come. It expires by the server's clock.

A process that finds the lease of an earlier life of its own node takes it at once: that one was killed, and what it had
is on this disk. A process that lost the lease never does, for then the other one is the later life.
"""

from __future__ import annotations

import logging
import secrets
from typing import Final

import orjson

from bus.connection import Bus
from bus.errors import WrongRevision
from bus.kv import Bucket, Entry
from schemas.errors import PunaError

log = logging.getLogger(__name__)

_LIFE: Final = secrets.token_hex(6)
"""Of this process."""


class Lease:
    """This node's part in the lease of one file. No call raises."""

    def __init__(self, bus: Bus, node: str, key: str, lease_s: float, *, life: str = _LIFE) -> None:
        self.lease_s = lease_s
        self._node = node
        self._life = life
        self._bucket = Bucket(bus, bus.names.bucket_leases)
        self._name = bus.names.lease_fetch(key)
        self._value = orjson.dumps({"node": node, "life": life})
        self._revision: int | None = None
        self._lost = False

    @property
    def held(self) -> bool:
        """We have it, as far as we know."""
        return self._revision is not None

    async def take(self) -> bool | None:
        """Get it. False: somebody else has it; None: it cannot be asked for."""
        return await self._take(inherit=not self._lost)

    async def _take(self, *, inherit: bool) -> bool | None:
        try:
            found = await self._bucket.get(self._name)
            if found is None:
                self._revision = await self._bucket.create(self._name, self._value, ttl_s=self.lease_s)
            elif inherit and self._is_of_an_earlier_life(found):
                last = found.revision
                self._revision = await self._bucket.update(self._name, self._value, last=last, ttl_s=self.lease_s)
            else:
                return False
        except WrongRevision:
            return False
        except PunaError as error:
            log.info("lease_unasked", extra={"event": "lease_unasked", "lease": self._name, "reason": error.code})
            return None
        return True

    async def renew(self) -> bool:
        """Keep it. False: somebody else has it now."""
        try:
            if self._revision is None:
                return await self.take() is not False
            self._revision = await self._bucket.update(self._name, self._value, last=self._revision, ttl_s=self.lease_s)
        except WrongRevision:
            self._revision, self._lost = None, True
            return await self.take() is not False
        except PunaError as error:
            log.info("lease_unrenewed", extra={"event": "lease_unrenewed", "lease": self._name, "reason": error.code})
        return True

    async def give_up(self) -> None:
        """Let others have it. One that we lost is left alone."""
        revision, self._revision = self._revision, None
        if revision is None:
            return
        try:
            await self._bucket.delete(self._name, last=revision)
        except PunaError as error:  # it expires by itself
            log.info("lease_kept", extra={"event": "lease_kept", "lease": self._name, "reason": error.code})

    def _is_of_an_earlier_life(self, found: Entry) -> bool:
        try:
            told = orjson.loads(found.value)
            return told["node"] == self._node and told.get("life", self._life) != self._life
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return False
