"""`puna ps`, `nodes` and `ls`: rows of the fleet, once or again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gateway.cli.nodes import NodeSource, source
from gateway.cli.tables import (
    ENGINE_COLUMNS,
    ENGINE_WIDE,
    MODEL_COLUMNS,
    MODEL_WIDE,
    NODE_COLUMNS,
    NODE_WIDE,
    Format,
    Row,
    console,
    engine_rows,
    model_rows,
    node_rows,
    show,
    table,
)
from gateway.cli.target import Target
from schemas.node import Heartbeat

_WATCH_EACH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Listing:
    """One kind of list: its rows, its columns, and the data behind them."""

    rows: Callable[[Sequence[Heartbeat]], list[Row]]
    columns: tuple[str, ...]
    wide: tuple[str, ...]
    data: Callable[[Sequence[Heartbeat]], Any]
    empty: str


def _engines(nodes: Sequence[Heartbeat]) -> list[dict[str, Any]]:
    return [{"node": node.node, **engine.model_dump(mode="json")} for node in nodes for engine in node.engines]


def _whole(nodes: Sequence[Heartbeat]) -> list[dict[str, Any]]:
    return [node.model_dump(mode="json") for node in nodes]


_NONE: Final = "no node has joined this fleet; start one with `puna worker --nats URL`, or a whole fleet with `puna up`"
ENGINES: Final = Listing(engine_rows, ENGINE_COLUMNS, ENGINE_WIDE, _engines, _NONE)
NODES: Final = Listing(node_rows, NODE_COLUMNS, NODE_WIDE, _whole, _NONE)
MODELS: Final = Listing(model_rows, MODEL_COLUMNS, MODEL_WIDE, model_rows, "no node serves a model yet; see `puna ps`")


async def run_listing(
    listing: Listing, target: Target, how: Format, *, watch: bool, tell: Callable[[str], None]
) -> None:
    """Print the list; with `watch`, until interrupted. Raises `BusUnavailable`, `CliError`."""
    async with source(target) as nodes:
        if not watch:
            _print(listing, await nodes.read(), how, tell)
        elif how in (Format.TABLE, Format.WIDE) and console().is_terminal:
            await _live(listing, nodes, how)
        else:
            await _repeated(listing, nodes, how, tell)


def _print(listing: Listing, beats: list[Heartbeat], how: Format, tell: Callable[[str], None]) -> None:
    rows = listing.rows(beats)
    if not rows and how in (Format.TABLE, Format.WIDE):
        tell(listing.empty)
        return
    show(listing.data(beats), rows, listing.columns, listing.wide, how)


async def _live(listing: Listing, nodes: NodeSource, how: Format) -> None:
    from rich.live import Live

    columns = listing.wide if how is Format.WIDE else listing.columns
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(table(listing.rows(await nodes.read()), columns), refresh=True)
            await asyncio.sleep(_WATCH_EACH_S)


async def _repeated(listing: Listing, nodes: NodeSource, how: Format, tell: Callable[[str], None]) -> None:
    """Where there is no terminal: the whole list again whenever it has changed."""
    before: object = None
    while True:
        beats = await nodes.read()
        if (now := listing.data(beats)) != before:
            before = now
            _print(listing, beats, how, tell)
        await asyncio.sleep(_WATCH_EACH_S)
