"""`puna logs MODEL|ENGINE [-f]`: the last lines of an engine, and those to come."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.control import the_engine
from gateway.cli.exits import FAILURE, OK, CliError
from gateway.cli.nodes import connected, read_nodes
from gateway.cli.say import Teller
from gateway.cli.tables import Format
from gateway.cli.target import Target
from schemas.errors import NotFound

if TYPE_CHECKING:
    from bus.connection import Bus, Message

_FIRST_S: Final = 5.0
_SILENCE_S: Final = 10.0
"""Who is followed says so at least every second, if only that there is nothing new."""


async def run_logs(target: Target, what: str, node: str | None, lines: int, follow: bool, how: Format) -> int:
    """Prints until the end, or with `follow` until Ctrl-C. Raises `PunaError`, `CliError`."""
    async with connected(target.nats_settings()) as bus:
        one = the_engine(await read_nodes(bus), what, node)
        body: dict[str, Any] = {"engine": one.engine, "lines": lines}
        if not follow:
            from gateway.orders import order

            told = await order(bus, one.node, "logs", body)
            _print(told, how)
            _tell_rest(told, how)
            return OK
        body |= {"follow": True}
        try:
            while True:  # a node ends each following after a while, and it is asked again for what comes then
                await _follow(bus, one.node, body, how)
                body["lines"] = 0
        except NotFound as error:
            Teller().line(f"puna: the engine is no more: {error.message}")
            return FAILURE


async def _follow(bus: Bus, node: str, body: dict[str, Any], how: Format) -> None:
    """Until the node ends it. The first message is the answer; further ones come to the same subject, and an empty one
    is the end. Raises `NotFound` if there is no such engine, and what else the node refuses."""
    from gateway.orders import refusal

    arrived: asyncio.Queue[Message] = asyncio.Queue()
    inbox = f"{bus.settings.inbox_prefix}.{secrets.token_hex(8)}"
    subscription = bus.subscribe(inbox, arrived.put_nowait)
    try:
        bus.publish(bus.names.node(node, "logs"), json.dumps(body).encode(), reply=inbox)
        first = await _next(arrived, node, _FIRST_S)
        if (refused := refusal(first)) is not None:
            raise refused
        _print(json.loads(first.payload), how)
        while (message := await _next(arrived, node, _SILENCE_S)).payload:
            _print({"node": node, **json.loads(message.payload)}, how)
    finally:
        subscription.close()


async def _next(arrived: asyncio.Queue[Message], node: str, wait_s: float) -> Message:
    try:
        async with asyncio.timeout(wait_s):
            return await arrived.get()
    except TimeoutError:
        raise CliError(f"node {node} says nothing any more", FAILURE) from None


def _print(told: dict[str, Any], how: Format) -> None:
    """Lines as they are; for programs one object a batch."""
    if how in (Format.JSON, Format.YAML):
        if told["lines"]:
            print(json.dumps(told, ensure_ascii=False), flush=True)
        return
    if told.get("left_out"):
        Teller().line(f"({told['left_out']} lines are left out)")
    for line in told["lines"]:
        print(line, flush=True)


def _tell_rest(told: dict[str, Any], how: Format) -> None:
    if how in (Format.TABLE, Format.WIDE) and told.get("withheld_total"):
        Teller().line(f"({told['withheld_total']} lines that could quote requests are not kept)")
