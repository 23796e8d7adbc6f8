"""`POST /v1/nodes/register` and `/v1/nodes/heartbeat`: node agents that have no NATS are shown beside those that have.

Such a node is told about, in the nodes bucket like any other with the label `source: http`, and nothing more: it takes
no work from the line, so what it serves is not routed to. Its entry expires with the bucket's time to live.
"""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from pydantic import Field, ValidationError

from bus.connection import Bus
from bus.errors import WrongRevision
from bus.kv import Bucket, Entry
from gateway.candidates import HTTP_SOURCE, SOURCE_LABEL, asked_by_bus
from gateway.modelpages import Body, read_body
from schemas.errors import InvalidRequest, NotAllowed, NotFound, Unavailable
from schemas.node import Device, DeviceMetrics, Heartbeat, Pressure
from schemas.subjects import check_node_id, encode
from schemas.topology import HEARTBEAT_S, NODE_TTL_S

DEVICES_LIMIT: Final = 64
LABELS_LIMIT: Final = 64
_TEXT = Field(default="", max_length=200)


class AgentDevice(Body):
    """One device of such a node. Memory in bytes."""

    device: str = Field(min_length=1, max_length=64)
    backend: str = _TEXT
    name: str = _TEXT
    uuid: str | None = Field(default=None, max_length=200)
    memory_total_bytes: int = Field(default=0, ge=0)
    memory_free_bytes: int = Field(default=0, ge=0)
    metrics: DeviceMetrics = DeviceMetrics()

    def told(self) -> Device:
        """As heartbeats have it."""
        known = self.model_dump(exclude={"backend"})
        return Device(backend=self.backend or self.device.partition(":")[0], **known)


class Registration(Body):
    """Who the node is."""

    node: str
    version: str = _TEXT
    architecture: str = _TEXT
    region: str | None = Field(default=None, max_length=200)
    labels: dict[str, str] = Field(default_factory=dict[str, str], max_length=LABELS_LIMIT)
    devices: list[AgentDevice] = Field(default_factory=list[AgentDevice], max_length=DEVICES_LIMIT)
    http: str | None = Field(default=None, max_length=300, pattern=r"^https?://[^\s/]+")
    """Base URL of its own HTTP; Prometheus is told of it."""


class Report(Body):
    """How it is now. What is left out stays as it was."""

    node: str
    devices: list[AgentDevice] | None = Field(default=None, max_length=DEVICES_LIMIT)
    pressure: Pressure | None = None
    draining: bool | None = None


class Agents:
    """Bridges them into the nodes bucket. Any gateway can take any report: nothing is kept here."""

    def __init__(self, bus: Bus) -> None:
        self._bucket = Bucket(bus, bus.names.bucket_nodes)

    async def register(self, raw: bytes) -> dict[str, Any]:
        """A node says who it is, as often as it likes. Raises `InvalidRequest`, `NotAllowed` for the name of a node
        that has a worker, `BusUnavailable`."""
        told = read_body(Registration, raw)
        check_node_id(told.node)
        now = time.time()
        beat = Heartbeat(
            node=told.node,
            boot_id=secrets.token_hex(8),
            sequence=_sequence(now),
            version=told.version or "unknown",
            started_at=now,
            architecture=told.architecture,
            region=told.region,
            labels=told.labels | {SOURCE_LABEL: HTTP_SOURCE},
            devices=tuple(device.told() for device in told.devices),
            http=told.http,
        )
        await self._write(beat, await self._present(told.node))
        return _agreed(told.node)

    async def heartbeat(self, raw: bytes) -> dict[str, Any]:
        """A node says how it is. Raises `NotFound` if it is not registered, or is no longer, and as `register`."""
        told = read_body(Report, raw)
        check_node_id(told.node)
        entry = await self._present(told.node)
        if entry is None:
            raise NotFound(f"node {told.node!r} is not registered; POST /v1/nodes/register", param="node")
        changed: dict[str, Any] = {"sequence": _sequence(time.time())}
        if told.devices is not None:
            changed["devices"] = tuple(device.told() for device in told.devices)
        changed |= {"pressure": told.pressure} if told.pressure is not None else {}
        changed |= {"draining": told.draining} if told.draining is not None else {}
        before = Heartbeat.model_validate_json(entry.value)
        await self._write(before.model_copy(update=changed), entry)
        return _agreed(told.node)

    async def _present(self, node: str) -> Entry | None:
        """Its entry, if it is one of ours. Raises `NotAllowed`."""
        entry = await self._bucket.get(encode(node))
        if entry is None:
            return None
        try:
            ours = not asked_by_bus(Heartbeat.model_validate_json(entry.value))
        except ValidationError as error:
            raise InvalidRequest(f"the entry of node {node!r} cannot be read; remove it first", param="node") from error
        if not ours:
            raise NotAllowed(f"node {node!r} has a worker that reports by NATS; use another name", param="node")
        return entry

    async def _write(self, beat: Heartbeat, before: Entry | None) -> None:
        key, value = encode(beat.node), beat.model_dump_json().encode()
        try:
            if before is None:
                await self._bucket.create(key, value)
            else:
                await self._bucket.update(key, value, last=before.revision)
        except WrongRevision as error:
            raise Unavailable(f"node {beat.node!r} is being written by another; try again", retry_after_s=1) from error


def _sequence(now: float) -> int:
    """Moves with every report, whichever gateway takes it."""
    return int(now * 1000)


def _agreed(node: str) -> dict[str, Any]:
    return {"node": node, "heartbeat_interval_s": HEARTBEAT_S, "ttl_s": NODE_TTL_S}
