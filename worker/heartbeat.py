"""The node's heartbeat: every two seconds, at once on change, at once in a new session; gone after a clean stop."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from bus.connection import Bus
from bus.kv import Bucket
from schemas.errors import PunaError
from schemas.node import Device, Engine, Heartbeat, NodeUsage, Offer, Pressure, Share
from schemas.subjects import encode
from schemas.topology import HEARTBEAT_S
from worker.enginespec import EngineBinary

log = logging.getLogger(__name__)

SETTLE_S: Final = 0.05
"""How long a change waits for more of its kind; also, a request that has just come is not made to wait for it."""
CHANGE_GAP_S: Final = 0.1
"""Between two heartbeats: what changes more often is told together."""


class Facts(Protocol):
    """What the heartbeat tells of the node as it is now."""

    def devices(self) -> tuple[Device, ...]:
        """Devices with their figures."""
        ...

    def accelerators(self) -> tuple[str, ...]:
        """Kinds of devices in use."""
        ...

    def engines(self) -> tuple[Engine, ...]:
        """Engines, with who is in them."""
        ...

    def offers(self) -> tuple[Offer, ...]:
        """What further engines would take."""
        ...

    def shares(self) -> dict[str, Share]:
        """Resources in shares."""
        ...

    def usage(self) -> NodeUsage | None:
        """What the host uses."""
        ...

    def pressure(self) -> Pressure:
        """How much is going on."""
        ...


class HeartbeatMaker:
    """Makes this process's heartbeats. `http`, `draining` may change."""

    def __init__(
        self,
        node: str,
        boot_id: str,
        version: str,
        facts: Facts,
        *,
        labels: Callable[[], Mapping[str, str]],
        region: str | None,
        engine: EngineBinary | None = None,
    ) -> None:
        self.http: str | None = None
        self.draining = False
        self._fixed = {
            "node": node,
            "boot_id": boot_id,
            "version": version,
            "started_at": time.time(),
            "architecture": platform.machine(),
            "region": region,
            "pid": os.getpid(),
            "host": platform.node(),
            "engine_program": engine.kind if engine else None,
            "engine_build": engine.version if engine else None,
        }
        self._facts = facts
        self._labels = labels
        self._sequence = 0

    def beat(self) -> Heartbeat:
        """The heartbeat of now, with the sequence of the last one that was sent."""
        facts = self._facts
        return Heartbeat.model_validate(
            self._fixed
            | {
                "sequence": self._sequence,
                "labels": dict(self._labels()),
                "devices": facts.devices(),
                "accelerators": facts.accelerators(),
                "engines": facts.engines(),
                "offers": facts.offers(),
                "shares": facts.shares(),
                "usage": facts.usage(),
                "pressure": facts.pressure(),
                "draining": self.draining,
                "http": self.http,
            }
        )

    def next(self) -> Heartbeat:
        """The next heartbeat to send."""
        self._sequence += 1
        return self.beat()


class Heartbeats:
    """Sends them."""

    def __init__(self, bus: Bus, make: Callable[[], Heartbeat], node: str, on_failed: Callable[[], None]) -> None:
        self._bucket = Bucket(bus, bus.names.bucket_nodes)
        self._bus = bus
        self._make = make
        self._key = encode(node)
        self._on_failed = on_failed
        self._changed = asyncio.Event()
        self._urgent = False

    def changed(self) -> None:
        """Something that a heartbeat tells is different now."""
        self._changed.set()

    async def session(self) -> None:
        """A new session: whoever watches must see us at once."""
        self._urgent = True
        self.changed()

    async def run(self) -> None:
        """Send until cancelled, from the first session on."""
        await self._changed.wait()
        while True:
            self._changed.clear()
            self._urgent = False
            if self._bus.connected:
                await self._send()
            await asyncio.sleep(CHANGE_GAP_S - SETTLE_S)
            await self._until_changed(HEARTBEAT_S - CHANGE_GAP_S)
            if not self._urgent:
                await asyncio.sleep(SETTLE_S)

    async def _until_changed(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _send(self) -> None:
        try:
            await self._bucket.put(self._key, self._make().model_dump_json().encode())
        except PunaError as error:
            self._on_failed()
            log.info("heartbeat_failed", extra={"event": "heartbeat_failed", "reason": error.message})

    async def leave(self) -> None:
        """Take the node out of the fleet."""
        try:
            await self._bucket.delete(self._key)
        except PunaError as error:
            log.info("heartbeat_left", extra={"event": "heartbeat_left", "reason": error.message})
