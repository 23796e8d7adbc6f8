"""Requests that kill engines: the second death refuses the request, here and at every other gateway.

A death is an engine that ended, or was ended as frozen, while it worked on the request. One may be chance (a card fell
off the bus, another request took the memory), so after the first the request is tried again as a suspect; if that goes
well it is cleared. What is known stands in the leases bucket under `poison.<digest>` for an hour, so that all gateways
count together. The digest is over operation, model and body, and is only made while anything is known at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from pydantic import ValidationError

from bus.connection import Bus
from bus.kv import Bucket, Entry, Follower
from bus.watched import Tasks
from gateway.admission import Ticket
from schemas.errors import BusUnavailable, PoisonedRequest
from schemas.node import Wire

log = logging.getLogger(__name__)

DEATHS_LIMIT: Final = 2
TTL_S: Final = 3600.0
SUSPECTS_LIMIT: Final = 10_000
_PREFIX: Final = "poison."


class Suspect(Wire):
    """The value under `poison.<digest>`: never a word of the request."""

    deaths: int = DEATHS_LIMIT
    why: str = ""
    when: float = 0.0
    """Unix seconds of the last death, by the clock of the gateway that wrote it."""
    model: str = ""
    node: str | None = None


def digest_of(ticket: Ticket) -> str:
    """The request itself, whoever sends it."""
    found = hashlib.sha256(f"{ticket.op}\0{ticket.model}\0".encode())
    found.update(ticket.body)
    return found.hexdigest()


class Suspects:
    """What is known, from the bucket and of our own before the bucket shows it. Plain."""

    def __init__(self, limit: int = SUSPECTS_LIMIT) -> None:
        self._limit = limit
        self._known: dict[str, tuple[int, Suspect]] = {}
        self._own: dict[str, Suspect] = {}

    def __len__(self) -> int:
        return len(self._known) + len(self._own)

    def find(self, digest: str) -> Suspect | None:
        """With the most deaths that anybody has told of."""
        known = self._known.get(digest, (0, None))[1]
        own = self._own.get(digest)
        if known is None or own is None:
            return known or own
        return max(known, own, key=lambda one: one.deaths)

    def add(self, digest: str, suspect: Suspect) -> bool:
        """Our own. False: there are too many already."""
        if digest not in self._own and len(self) >= self._limit:
            return False
        self._own[digest] = suspect
        return True

    def clear(self, digest: str) -> None:
        """It went well, or was so long ago that it does not count."""
        self._own.pop(digest, None)

    def take(self, entries: Mapping[str, Entry]) -> None:
        """A new state of the bucket. Only what changed is parsed; over the limit the newest stay."""
        found = [(entry.revision, key.removeprefix(_PREFIX), entry) for key, entry in entries.items() if _is_ours(key)]
        if len(found) > self._limit:
            found = sorted(found, reverse=True, key=lambda one: one[0])[: self._limit]
        before, self._known = self._known, {}
        for revision, digest, entry in found:
            old = before.get(digest)
            self._known[digest] = old if old is not None and old[0] == revision else (revision, _parsed(entry.value))
            own = self._own.get(digest)
            if own is not None and own.deaths <= self._known[digest][1].deaths:
                del self._own[digest]


def _is_ours(key: str) -> bool:
    return key.startswith(_PREFIX)


def _parsed(value: bytes) -> Suspect:
    """A value that cannot be read was put there by hand, to refuse this request."""
    try:
        return Suspect.model_validate_json(value)
    except ValidationError:
        return Suspect(why="refused by the operator")


class Poison:
    """The suspects of the fleet, followed and written."""

    def __init__(self, bus: Bus, tasks: Tasks, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._bus = bus
        self._tasks = tasks
        self._wall_clock = wall_clock
        self._bucket = Bucket(bus, bus.names.bucket_leases)
        self._follower = Follower(self._bucket, self._changed)
        self._suspects = Suspects()

    def __len__(self) -> int:
        return len(self._suspects)

    def start(self) -> None:
        """Follow the bucket; what it says counts from when it was read."""
        self._tasks.start("follow suspects", self._follower.start())

    async def stop(self) -> None:
        """Safe to call twice."""
        await self._follower.stop()

    def _changed(self, entries: Mapping[str, Entry]) -> None:
        self._suspects.take(entries)

    # -- what requests ask -------------------------------------------------------------------------------------------
    def deaths(self, ticket: Ticket) -> int:
        """Engines that the request has killed by now. Raises `PoisonedRequest` if that is enough."""
        if not self._suspects:
            return 0
        found = self._suspects.find(digest_of(ticket))
        if found is None:
            return 0
        if found.deaths >= DEATHS_LIMIT:
            raise poisoned(found.why)
        return found.deaths

    def died(self, ticket: Ticket, deaths: int, *, node: str | None, why: str) -> None:
        """An engine died of the request, for the `deaths`-th time."""
        digest = digest_of(ticket)
        suspect = Suspect(deaths=deaths, why=why[:200], when=self._wall_clock(), model=ticket.model, node=node)
        facts = {"request": ticket.wire_id, "model": ticket.model, "node": node, "deaths": deaths, "why": suspect.why}
        event = "request_poisoned" if deaths >= DEATHS_LIMIT else "request_suspected"
        log.warning(event, extra={"event": event, "digest": digest} | facts)
        if not self._suspects.add(digest, suspect):
            log.warning("suspects_full", extra={"event": "suspects_full", "limit": SUSPECTS_LIMIT})
            return
        asyncio.get_running_loop().call_later(TTL_S, self._suspects.clear, digest)
        self._tasks.start(f"suspect {ticket.wire_id}", self._write(digest, suspect))

    def survived(self, ticket: Ticket) -> None:
        """A suspect was answered in full: it was chance."""
        digest = digest_of(ticket)
        self._suspects.clear(digest)
        log.info("request_cleared", extra={"event": "request_cleared", "digest": digest, "request": ticket.wire_id})
        self._tasks.start(f"clear suspect {ticket.wire_id}", self._remove(digest))

    async def _write(self, digest: str, suspect: Suspect) -> None:
        key = self._bus.names.lease_poison(digest)
        try:
            await self._bucket.put(key, suspect.model_dump_json().encode(), ttl_s=TTL_S)
        except BusUnavailable as error:
            # our own entry stays: this gateway refuses the request all the same
            log.warning("suspect_not_shared", extra={"event": "suspect_not_shared", "why": error.code})

    async def _remove(self, digest: str) -> None:
        try:
            await self._bucket.delete(self._bus.names.lease_poison(digest))
        except BusUnavailable as error:
            log.info("suspect_stays", extra={"event": "suspect_stays", "digest": digest, "why": error.code})


def poisoned(why: str) -> PoisonedRequest:
    """The refusal, in words."""
    told = f" ({why})" if why else ""
    return PoisonedRequest(f"this request has ended {DEATHS_LIMIT} engines and is not tried again{told}; change it")
