"""Whether this node lives, is well, and is ready for work: for probes, and for people who want to know why not.

| page       | what it tells                                                   | who acts on it                     |
|------------|-----------------------------------------------------------------|------------------------------------|
| `/livez`   | the process does its work; if not, only a new one will          | whoever starts it again            |
| `/healthz` | its models' folder is there and can be used                     | whoever mounts disks; a scheduler  |
| `/readyz`  | requests and tasks can be taken now                             | whoever sends work                 |

What may hang (a disk, the server's store) is looked at in the background, one look at a time: a page only tells what
the last look has found, or that it has not come back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import psutil

from schemas.errors import PunaError
from schemas.node import Heartbeat
from worker.memory import gib
from worker.sources import SourceError

LOOK_S: Final = 3.0
BUS_LOOK_S: Final = 15.0
"""Seldom: a fleet has many nodes and one server. After a failure as often as the others."""
LATE_S: Final = 15.0
"""A look that takes longer than this has failed."""
LAG_LIMIT_S: Final = 5.0
"""An event loop that is later than this does not answer requests in time."""
STUCK_S: Final = 1800.0
"""Downloads that are under way for so long, and nothing comes: longer than any wait that a source may ask for."""
FREE_LEAST_BYTES: Final = 256 << 20
"""With less than this a disk is as good as full."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing, and what is wrong with it. `remedy`: what to do then."""

    name: str
    reason: str | None = None
    remedy: str = ""

    def told(self) -> dict[str, Any]:
        """As JSON data."""
        if self.reason is None:
            return {"name": self.name, "ok": True}
        return {"name": self.name, "ok": False, "reason": self.reason, "remedy": self.remedy}


class Look:
    """One thing that is looked at again and again. `ask` raises what is wrong."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
        *,
        every_s: float = LOOK_S,
    ) -> None:
        self._ask = ask
        self._clock = clock
        self._every_s = every_s
        self._begun_at: float | None = None
        self._wrong: str | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.once()
            await asyncio.sleep(LOOK_S if self._wrong else self._every_s)

    async def once(self) -> None:
        """Look now."""
        self._begun_at = self._clock()
        try:
            await self._ask()
            self._wrong = None
        except (PunaError, SourceError) as error:
            self._wrong = error.message
        self._begun_at = None

    @property
    def wrong(self) -> str | None:
        """What is wrong as far as is known."""
        took_s = 0.0 if self._begun_at is None else self._clock() - self._begun_at
        return self._wrong if took_s < LATE_S else f"no answer for {took_s:.0f} s"


class Shelves(Protocol):
    """The models on disks, as far as health is concerned."""

    @property
    def trouble(self) -> str | None:
        """Why the store cannot be used."""
        ...

    @property
    def is_open(self) -> bool:
        """It can be."""
        ...

    @property
    def free_bytes(self) -> int | None:
        """Of its disk, as far as that is known."""
        ...

    def idle_s(self) -> float:
        """How long downloads are under way without that anything comes."""
        ...

    async def look(self) -> None:
        """That the models' folder can be used. Raises a `SourceError`."""
        ...


@dataclass(frozen=True, slots=True)
class Vital:
    """What health asks of the node. `dead` names a part that has died; `ask_bus` raises unless the server's store
    answers."""

    shelves: Shelves
    beat: Callable[[], Heartbeat]
    connected: Callable[[], bool]
    ask_bus: Callable[[], Awaitable[None]]
    lag_s: Callable[[], float]
    dead: Callable[[], str | None]
    memory_limit_bytes: int | None = None


class Health:
    """The checks of each page, each with its remedy."""

    def __init__(self, vital: Vital) -> None:
        self._vital = vital
        self._folder = Look(vital.shelves.look)
        self._bus = Look(self._ask_bus, every_s=BUS_LOOK_S)
        self._process = psutil.Process()

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._folder.run(), name="look at the models' folder")
            group.create_task(self._bus.run(), name="look at the bus")

    async def _ask_bus(self) -> None:
        if self._vital.connected():
            await self._vital.ask_bus()

    # -- pages -------------------------------------------------------------------------------------------------------
    def live(self) -> list[Check]:
        """Of `/livez`."""
        vital, lag_s = self._vital, self._vital.lag_s()
        late = f"the event loop is {lag_s:.1f} s late" if lag_s > LAG_LIMIT_S else None
        dead = vital.dead()
        return [
            Check("event_loop", late, "give the worker a processor of its own; the log has loop_late"),
            Check("parts", dead and f"{dead} has died", "start the worker again; the log has part_died"),
            self._memory(),
        ]

    def healthy(self) -> list[Check]:
        """Of `/healthz`."""
        return [self._root(), self._downloads()]

    def _root(self) -> Check:
        reason = self._vital.shelves.trouble or self._folder.wrong
        return Check("models_root", reason, "mount, mend or permit the folder store.models_root_dir")

    def ready(self) -> list[Check]:
        """Of `/readyz`."""
        vital, beat = self._vital, self._vital.beat()
        connected = vital.connected()
        return [
            Check("nats", None if connected else "not connected to NATS", "look at nats.url and the server"),
            Check("jetstream", self._bus.wrong if connected else None, "run nats-server with -js and room on its disk"),
            Check(
                "store",
                None if vital.shelves.is_open or vital.shelves.trouble else "the models' folder is being opened",
                "wait; a large folder takes a while",
            ),
            self._root(),
            self._disk(),
            Check("draining", "draining" if beat.draining else None, "wait until it has ended"),
            Check("engines", _engines(beat), "ask why: puna logs, puna explain MODEL"),
        ]

    def _disk(self) -> Check:
        free = self._vital.shelves.free_bytes
        full = f"the disk of the models has {gib(free)} free" if free is not None and free < FREE_LEAST_BYTES else None
        return Check("disk", full, "delete models (puna rm), or set store.high_water_percent")

    def _downloads(self) -> Check:
        idle_s = self._vital.shelves.idle_s()
        stuck = f"downloads are under way, and nothing has come for {idle_s:.0f} s" if idle_s > STUCK_S else None
        return Check("downloads", stuck, "look at the source and the network; the log has file_download")

    def _memory(self) -> Check:
        limit, used = self._vital.memory_limit_bytes, self._process.memory_info().rss
        over = limit is not None and used > limit
        reason = f"the process has {gib(used)} of main memory, and may have {gib(limit or 0)}" if over else None
        return Check("memory", reason, "start the worker again, or raise live_memory_limit_bytes")


def _engines(beat: Heartbeat) -> str | None:
    """A node without engines starts them when they are asked for; one whose engines have all failed serves nobody."""
    if not beat.engines or any(engine.state == "ready" for engine in beat.engines):
        return None
    return "; ".join(f"{each.model} is {each.state}: {each.reason or 'no reason'}" for each in beat.engines)


def page(checks: Iterable[Check], bad: str) -> tuple[int, dict[str, Any]]:
    """Status and body: `reasons` are what is wrong, `checks` is everything."""
    checks = list(checks)
    reasons = [check.reason for check in checks if check.reason is not None]
    body = {"status": bad if reasons else "ok", "reasons": reasons, "checks": [check.told() for check in checks]}
    return (503 if reasons else 200), body
