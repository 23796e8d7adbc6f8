"""`puna explain MODEL`: one line a node, whether one more engine fits there, with the numbers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from gateway.candidates import asked_by_bus, offer_of
from gateway.cli.control import known_node
from gateway.cli.exits import NOT_FOUND, OK, SOME_FAILED, CliError
from gateway.cli.nodes import connected, read_nodes
from gateway.cli.say import Teller
from gateway.cli.tables import Format, Row, bytes_shown, show
from gateway.cli.target import Target
from schemas.errors import ModelNotFound, PunaError
from schemas.node import Engine, Heartbeat, Offer

if TYPE_CHECKING:
    from bus.connection import Bus

COLUMNS: Final = ("node", "fits", "cost", "needed", "free", "devices", "evicts", "load s", "engines", "why")
MEANING: Final = {1: "room", 2: "room", 3: "room", 4: "evict", 5: "evict", 6: "evict", 7: "fetch", 8: "cpu", 9: "cpu"}
_NOT_ON_DISK: Final = "the node does not have the model"


async def run_explain(target: Target, model: str, node: str | None, how: Format) -> int:
    """Returns the exit code: 6 if some nodes did not answer and their heartbeats stand in. Raises `CliError`."""
    async with connected(target.nats_settings()) as bus:
        beats = await read_nodes(bus)
        known_node(beats, node)
        asked = [beat for beat in beats if asked_by_bus(beat) and node in (None, beat.node)]
        found = await asyncio.gather(*(_explained(bus, beat, model) for beat in asked))
    if all(_offer(item) is None and not item["engines"] for item in found):
        raise CliError(f"no node has model {model!r}; see `puna ls`", NOT_FOUND)
    show(found, [row_of(item) for item in found], COLUMNS, COLUMNS, how)
    silent = [item["node"] for item in found if item["error"]]
    if silent:
        Teller().line(f"puna: not asked, shown from the last heartbeat: {', '.join(silent)}")
    return SOME_FAILED if silent else OK


async def _explained(bus: Bus, beat: Heartbeat, model: str) -> dict[str, Any]:
    """What the node decides now; if it does not answer, what it last told of itself."""
    from gateway.orders import order

    text = None
    try:
        told = await order(bus, beat.node, "explain", {"model": model})
        offers, engines, error, text = told.get("offers", []), told.get("engines", []), None, told.get("text")
    except ModelNotFound:
        offers, engines, error = [], [], None
    except PunaError as failure:
        offer = offer_of(beat, model)
        offers = [offer.model_dump(mode="json")] if offer is not None else []
        engines, error = [engine.model_dump(mode="json") for engine in beat.engines], failure.message
    offers = [offer for offer in offers if offer.get("model") == model]
    having = [engine for engine in engines if engine.get("model") == model]
    about = {"node": beat.node, "draining": beat.draining, "offer": (offers or [None])[0], "engines": having}
    return about | {"text": text, "error": error}


def _offer(item: dict[str, Any]) -> Offer | None:
    return Offer.model_validate(item["offer"]) if item["offer"] is not None else None


def row_of(item: dict[str, Any]) -> Row:
    """For people."""
    offer, engines = _offer(item), [Engine.model_validate(one) for one in item["engines"]]
    states = ", ".join(f"{one.engine} {one.state}" for one in engines)
    if offer is None:
        why = "it has its engine already" if engines else _NOT_ON_DISK
        return {"node": item["node"], "fits": "no", "engines": states, "why": why}
    fits = offer.cost is not None and not item["draining"]
    return {
        "node": item["node"],
        "fits": "yes" if fits else "no",
        "cost": None if offer.cost is None else f"{offer.cost} {MEANING.get(offer.cost, '')}".strip(),
        "needed": bytes_shown(offer.needed_bytes),
        "free": bytes_shown(offer.free_bytes),
        "devices": ",".join(offer.devices),
        "evicts": ",".join(offer.evicts),
        "load s": None if offer.load_seconds is None else round(offer.load_seconds, 1),
        "engines": states,
        "why": "it is draining" if item["draining"] else item.get("text") or _why(offer),
    }


def _why(offer: Offer) -> str:
    if offer.reason:
        return offer.reason
    if offer.evicts:
        return "an idle engine is stopped for it"
    return "there is room" if offer.cost is not None else ""
