"""`puna events [-f]`: what happened in the fleet, out of the stream that keeps seven days of it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.exits import OK
from gateway.cli.nodes import connected
from gateway.cli.say import Teller
from gateway.cli.tables import Format
from gateway.cli.target import Target

if TYPE_CHECKING:
    from bus.connection import Bus, Message

Event = dict[str, Any]
_SEEN_LIMIT: Final = 2000
_AT_ONCE: Final = 20
_ALWAYS: Final = frozenset(("node", "kind", "at"))


async def run_events(target: Target, node: str | None, lines: int, follow: bool, how: Format) -> int:
    """Prints the last events, and with `follow` those to come until Ctrl-C. Raises `BusUnavailable`."""
    async with connected(target.nats_settings()) as bus:
        arrived: asyncio.Queue[bytes] = asyncio.Queue()
        subject = bus.names.event(node, "*") if node else f"{bus.names.prefix}.event.*.*"
        if follow:  # heard before the past is read, so that nothing falls between
            bus.subscribe(subject, lambda message: _heard(arrived, message))
        past = await _past(bus, subject, lines)
        for raw in past:
            _print(raw, how)
        if not follow:
            if not past and how in (Format.TABLE, Format.WIDE):
                Teller().line("nothing has happened in the last seven days")
            return OK
        seen = deque(past, maxlen=_SEEN_LIMIT)
        while True:
            raw = await arrived.get()
            if raw not in seen:
                _print(raw, how)


def _heard(arrived: asyncio.Queue[bytes], message: Message) -> None:
    arrived.put_nowait(message.payload)


async def _past(bus: Bus, subject: str, count: int) -> list[bytes]:
    """The last `count` events, the oldest first, read from the newest back."""
    from bus.topology import stream_info

    info = await stream_info(bus, bus.names.stream_events)
    if info is None or count == 0:
        return []
    first, last = int(info["state"]["first_seq"]), int(info["state"]["last_seq"])
    found: list[bytes] = []
    while len(found) < count and last >= first and last > 0:
        batch = range(last, max(first, last - _AT_ONCE + 1) - 1, -1)
        found += [raw for raw in await asyncio.gather(*(_stored(bus, at, subject) for at in batch)) if raw is not None]
        last -= _AT_ONCE
    return found[:count][::-1]


async def _stored(bus: Bus, sequence: int, subject: str) -> bytes | None:
    from bus.errors import JetStreamError

    try:
        answer = await bus.js_api(f"STREAM.MSG.GET.{bus.names.stream_events}", {"seq": sequence})
    except JetStreamError:
        return None  # dropped meanwhile, as the oldest ones are
    message = answer["message"]
    wanted, given = subject.split("."), str(message["subject"]).split(".")
    same = len(wanted) == len(given) and all(one in ("*", other) for one, other in zip(wanted, given, strict=True))
    return base64.b64decode(message.get("data") or "") if same else None


def _print(raw: bytes, how: Format) -> None:
    try:
        event = json.loads(raw)
    except ValueError:
        return  # somebody typed on the subject; it is no event
    if not isinstance(event, dict):
        return
    if how in (Format.JSON, Format.YAML):
        print(json.dumps(event, ensure_ascii=False), flush=True)
    else:
        print(line_of(event), flush=True)  # pyright: ignore[reportUnknownArgumentType]


def line_of(event: Event) -> str:
    """For people: when, where, what, and all else that is told of it."""
    at = event.get("at")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if isinstance(at, int | float) else "-" * 19
    more = " ".join(f"{name}={value}" for name, value in event.items() if name not in _ALWAYS and value is not None)
    return f"{when}  {event.get('node', '?'):<16} {event.get('kind', '?'):<18} {more}".rstrip()
