"""The fleet's heartbeats: from NATS, the truth even where no gateway runs, or through a gateway if one is named."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from gateway.cli.httpclient import GatewayHttp
from gateway.cli.target import Target
from schemas.node import Heartbeat

if TYPE_CHECKING:
    from bus.connection import Bus
    from bus.kv import Entry
    from bus.settings import NatsSettings

CONNECT_S: Final = 5.0
_GONE: Final = "gone"


@asynccontextmanager
async def connected(settings: NatsSettings) -> AsyncGenerator[Bus]:
    """A connection for one command. Raises `BusUnavailable`."""
    from bus.connection import Bus

    logging.getLogger("bus").addHandler(logging.NullHandler())  # what goes wrong is raised, and told once
    bus = await Bus.connect(settings, name="puna-cli", timeout_s=CONNECT_S)
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def source(target: Target) -> AsyncGenerator[NodeSource]:
    """Where this command reads heartbeats. Raises `BusUnavailable`, `CliError`."""
    if target.gateway and not target.nats:
        yield NodeSource(None, GatewayHttp(target.gateway_url(), target.key()))
    else:
        async with connected(target.nats_settings()) as bus:
            yield NodeSource(bus, None)


class NodeSource:
    """Reads the heartbeats of the nodes that live, as often as asked."""

    def __init__(self, bus: Bus | None, gateway: GatewayHttp | None) -> None:
        self._bus, self._gateway = bus, gateway

    async def read(self) -> list[Heartbeat]:
        """By name. A fleet that never had a node has none."""
        if self._gateway is not None:
            items = self._gateway.get("/v1/nodes")["data"]
            return [Heartbeat.model_validate(item) for item in items if item.get("state") != _GONE]
        return await read_nodes(self._bus) if self._bus is not None else []


async def read_nodes(bus: Bus) -> list[Heartbeat]:
    """The last heartbeat of each node that lives, by name."""
    from bus.errors import JetStreamError
    from bus.kv import Bucket
    from bus.topology import STREAM_NOT_FOUND

    bucket = Bucket(bus, bus.names.bucket_nodes)
    try:
        await bus.js_api(f"STREAM.INFO.{bucket.stream}")
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return []  # no node has ever joined
        raise
    return from_snapshot(await bucket.entries())


def from_snapshot(entries: Mapping[str, Entry]) -> list[Heartbeat]:
    """The heartbeats in a bucket's entries, by name."""
    beats = (Heartbeat.model_validate_json(entry.value) for entry in entries.values())
    return sorted(beats, key=lambda beat: beat.node)
