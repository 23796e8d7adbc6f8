"""What the lists show: the fleet's heartbeats, models and copies; from NATS, the truth even where no gateway runs, or
through a gateway if one is named."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from gateway.cli.httpclient import GatewayHttp
from gateway.cli.target import Target
from schemas.errors import BusUnavailable
from schemas.model import CopyRecord
from schemas.node import Heartbeat

if TYPE_CHECKING:
    from bus.connection import Bus
    from bus.kv import Entry
    from bus.settings import NatsSettings

CONNECT_S: Final = 5.0
_NATS_PORT: Final = 4222
_GONE: Final = "gone"
COMING_STATES: Final = frozenset(("Pending", "Downloading", "Verifying", "Updating", "Failed", "Deleting"))
"""Of copies that are shown beside engines: something happens to them, or should."""


@asynccontextmanager
async def connected(settings: NatsSettings) -> AsyncGenerator[Bus]:
    """A connection for one command. Raises `BusUnavailable`."""
    from bus.connection import Bus

    logging.getLogger("bus").addHandler(logging.NullHandler())  # what goes wrong is raised, and told once
    await _somebody_listens(settings.url)
    bus = await Bus.connect(settings, name="puna-cli", timeout_s=CONNECT_S)
    try:
        yield bus
    finally:
        await bus.close()


async def _somebody_listens(urls: str) -> None:
    """Who is refused at every address need not be tried for seconds. Raises `BusUnavailable`."""
    refusals = [await _refusal(url.strip()) for url in urls.split(",")]
    if None not in refusals:
        raise BusUnavailable(f"NATS cannot be reached: {'; '.join(str(refusal) for refusal in refusals)}")


async def _refusal(url: str) -> str | None:
    """Why nobody is there; None: somebody may be."""
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    host, port = parts.hostname or "127.0.0.1", parts.port or _NATS_PORT
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return f"nobody listens at {host}:{port}"
    except (OSError, TimeoutError):
        return None  # the real attempt tells more of it
    writer.close()
    return None


@asynccontextmanager
async def source(target: Target) -> AsyncGenerator[NodeSource]:
    """Where this command reads heartbeats. Raises `BusUnavailable`, `CliError`."""
    if target.gateway and not target.nats:
        yield NodeSource(None, GatewayHttp(target.gateway_url(), target.key()))
    else:
        async with connected(target.nats_settings()) as bus:
            yield NodeSource(bus, None)


@dataclass(frozen=True, slots=True)
class Seen:
    """The fleet at one moment. `models` are entries of `/v1/models`."""

    beats: Sequence[Heartbeat] = ()
    models: Sequence[dict[str, Any]] = ()
    coming: Sequence[CopyRecord] = field(default=())
    """Copies that are not whole yet, or are being renewed."""


class NodeSource:
    """Reads the nodes that live, and the models, as often as asked."""

    def __init__(self, bus: Bus | None, gateway: GatewayHttp | None) -> None:
        self._bus, self._gateway = bus, gateway

    async def read(self) -> Seen:
        """By name. A fleet that never had a node has nothing."""
        if self._gateway is not None:
            return _through(self._gateway)
        return await _direct(self._bus) if self._bus is not None else Seen()


def _through(gateway: GatewayHttp) -> Seen:
    items = gateway.get("/v1/nodes")["data"]
    models: list[dict[str, Any]] = gateway.get("/v1/models")["data"]
    coming: list[CopyRecord] = []
    for model in models:
        if _unsettled(model):
            each = gateway.get(f"/v1/models/{model['id']}")["copies"]["each"]
            coming += [CopyRecord.model_validate({"model": model["id"], **one}) for one in each if one["node_lives"]]
    beats = [Heartbeat.model_validate(item) for item in items if item.get("state") != _GONE]
    return Seen(beats, models, [copy for copy in coming if copy.state in COMING_STATES])


def _unsettled(model: Mapping[str, Any]) -> bool:
    copies: Mapping[str, Any] = model.get("copies") or {}
    return bool(copies.get("coming") or copies.get("failed"))


async def _direct(bus: Bus) -> Seen:
    from gateway import models
    from gateway.cli.records import read_moment

    moment = await read_moment(bus)
    beats = [one.beat for _, one in sorted(moment.fleet.nodes.items())]
    here = [one.copy for stored in moment.shelf.models.values() for one in stored.copies.values()]
    coming = [copy for copy in here if copy.state in COMING_STATES and copy.node in moment.fleet.nodes]
    return Seen(beats, models.listing(moment)["data"], coming)


async def read_nodes(bus: Bus) -> list[Heartbeat]:
    """The last heartbeat of each node that lives, by name."""
    from gateway.cli.records import entries

    return from_snapshot(await entries(bus, bus.names.bucket_nodes))


def from_snapshot(entries: Mapping[str, Entry]) -> list[Heartbeat]:
    """The heartbeats in a bucket's entries, by name."""
    beats = (Heartbeat.model_validate_json(entry.value) for entry in entries.values())
    return sorted(beats, key=lambda beat: beat.node)
