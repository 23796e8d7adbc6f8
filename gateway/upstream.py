"""`GET /upstream/NODE/ENGINE/PAGE`: what one engine tells of itself, for people who look for the one that is odd.

A short list of pages that only tell, and no way to the engine: requests go through the line.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from bus.connection import Bus
from gateway.orders import order_raw
from schemas.errors import NotFound

UPSTREAM: Final = "/upstream/"
PAGES: Final = ("/health", "/metrics", "/props", "/slots", "/v1/models")


async def upstream_page(bus: Bus, nodes: Container[str], path: str) -> bytes:
    """The page as the engine wrote it. Raises `NotFound` for a page or node that there is not, the node's own refusals
    for an engine that it has not or that is not ready, `DeadlineExceeded`, `BusUnavailable`."""
    node, _, rest = path.removeprefix(UPSTREAM).partition("/")
    engine, _, page = rest.partition("/")
    if f"/{page}" not in PAGES:
        raise NotFound(f"an engine's pages are {UPSTREAM}NODE/ENGINE and then {', '.join(PAGES)}")
    if node not in nodes:
        raise NotFound(f"node {node[:80]!r} is not known; GET /v1/nodes lists those that are")
    return await order_raw(bus, node, "engine-get", {"engine": engine, "path": f"/{page}"})
