"""`puna ps`, `nodes` and `ls`: rows of the fleet, once or again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.cli.nodes import NodeSource, Seen, source
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
from schemas.model import CopyRecord

_WATCH_EACH_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Listing:
    """One kind of list: its rows, its columns, and the data behind them."""

    rows: Callable[[Seen], list[Row]]
    columns: tuple[str, ...]
    wide: tuple[str, ...]
    data: Callable[[Seen], Any]
    empty: str


def _engines(seen: Seen) -> list[dict[str, Any]]:
    engines = [{"node": node.node, **engine.model_dump(mode="json")} for node in seen.beats for engine in node.engines]
    return [*engines, *({"engine": None, **_copy(copy)} for copy in seen.coming)]


def _copy(copy: CopyRecord) -> dict[str, Any]:
    return copy.model_dump(mode="json", exclude_none=True, exclude={"config"})


def _whole(seen: Seen) -> list[dict[str, Any]]:
    return [node.model_dump(mode="json") for node in seen.beats]


def _models(seen: Seen) -> list[dict[str, Any]]:
    """As `/v1/models` has them, and under the names of the table."""
    return [{**entry, "model": entry["id"]} for entry in seen.models]


_NONE: Final = "no node has joined this fleet; start one with `puna worker --nats URL`, or a whole fleet with `puna up`"
ENGINES: Final = Listing(
    lambda seen: engine_rows(seen.beats, coming=seen.coming), ENGINE_COLUMNS, ENGINE_WIDE, _engines, _NONE
)
NODES: Final = Listing(lambda seen: node_rows(seen.beats), NODE_COLUMNS, NODE_WIDE, _whole, _NONE)
MODELS: Final = Listing(
    lambda seen: model_rows(seen.models),
    MODEL_COLUMNS,
    MODEL_WIDE,
    _models,
    "there is no model yet; `puna pull` fetches one",
)


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


def _print(listing: Listing, seen: Seen, how: Format, tell: Callable[[str], None]) -> None:
    rows = listing.rows(seen)
    if not rows and how in (Format.TABLE, Format.WIDE):
        tell(listing.empty)
        return
    show(listing.data(seen), rows, listing.columns, listing.wide, how)


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
        seen = await nodes.read()
        if (now := listing.data(seen)) != before:
            before = now
            _print(listing, seen, how, tell)
        await asyncio.sleep(_WATCH_EACH_S)
