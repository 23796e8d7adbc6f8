"""Sends the requests of a workload at their times and sees what becomes of each. Two ways in: the line, the gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import orjson

from bench.dispatch.workload import Request

_SPIN_S: Final = 0.0005


@dataclass(slots=True)
class Fate:
    """What became of one request. `sent_ns` is on the machine's monotonic clock, as the engines' journal is."""

    sent_ns: int = 0
    answered: bool = False
    cut: bool = False
    """Its stream had begun and ended with an error that says so: what was sent to a client cannot be taken back."""
    error: str | None = None
    tries: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of all requests of a run, by their numbers."""

    began_ns: int
    fates: dict[int, Fate] = field(default_factory=dict[int, Fate])

    @property
    def lost(self) -> int:
        """Requests that were not answered. One that was cut is not among them."""
        return sum(not fate.answered and not fate.cut for fate in self.fates.values())

    @property
    def cut(self) -> int:
        """Requests whose stream ended with an error in its middle."""
        return sum(fate.cut for fate in self.fates.values())

    @property
    def errors(self) -> dict[str, int]:
        """What was said instead."""
        said = [fate.error or "silence" for fate in self.fates.values() if not fate.answered and not fate.cut]
        return {each: said.count(each) for each in sorted(set(said))}


class Door(Protocol):
    """A way in."""

    def send(self, request: Request, body: bytes, fate: Fate) -> asyncio.Future[None]:
        """Send it now; done when the request is answered or has failed."""
        ...


def body_of(request: Request) -> bytes:
    """A chat that takes the request's time in a simulated engine, and says its number in the engine's journal."""
    message = {"role": "user", "content": "How long is a piece of string?"}
    fields = {"model": request.model, "messages": [message], "stream": True, "max_tokens": request.tokens}
    return orjson.dumps(fields | {"seed": request.number})


async def drive(door: Door, requests: Sequence[Request], *, patience_s: float) -> Outcome:
    """Send all and wait for their ends, after the last one at most `patience_s`."""
    loop = asyncio.get_running_loop()
    outcome, waiting = Outcome(time.monotonic_ns()), set[asyncio.Future[None]]()
    start_s = loop.time() + 0.05
    for request in requests:
        body = body_of(request)
        if (left_s := start_s + request.at_s - loop.time()) > _SPIN_S:
            await asyncio.sleep(left_s)
        fate = outcome.fates[request.number] = Fate(time.monotonic_ns())
        waiting.add(door.send(request, body, fate))
    if waiting:
        await asyncio.wait(waiting, timeout=patience_s)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    return outcome


async def drive_in_turn(door: Door, requests: Sequence[Request], *, at_once: int, patience_s: float) -> Outcome:
    """Send each when one of those before it has ended, so that `at_once` of them are under way; times do not count."""
    outcome, waiting = Outcome(time.monotonic_ns()), set[asyncio.Future[None]]()
    for request in requests:
        if len(waiting) >= at_once:
            done, waiting = await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
        fate = outcome.fates[request.number] = Fate(time.monotonic_ns())
        waiting.add(door.send(request, body_of(request), fate))
    if waiting:
        await asyncio.wait(waiting, timeout=patience_s)
    return outcome
