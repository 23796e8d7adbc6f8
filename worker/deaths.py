"""Whether a request failed because its engine's process ended: the request is then a suspect, and runs alone next time.

The broken connection and the end of the process are told apart by nobody but the process table, and come in any order.
So a failure whose cause is not known yet waits for it, at most `CAUSE_WAIT_S`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from schemas.errors import EngineDied, PunaError
from web.client import Client
from worker.engines import ServingEngine
from worker.work import Work

CAUSE_WAIT_S: Final = 1.0

Finish = Callable[[PunaError], None]


@dataclass(eq=False, slots=True)
class _Open:
    """A failure whose cause is not known."""

    engine: str
    client: Client
    error: PunaError
    finish: Finish


class Deaths:
    """Owner of what is known of engines that died, and of the failures that wait for it."""

    def __init__(self) -> None:
        self._ready: dict[str, Client] = {}
        self._dead: dict[str, tuple[Client, str]] = {}
        self._open: list[_Open] = []

    def changed(self, engine: ServingEngine) -> None:
        """An engine's state is another one."""
        engine_id, client = engine.engine_id, engine.client
        if client is not None:
            self._ready[engine_id] = client
            return
        was = self._ready.pop(engine_id, None)
        if was is not None and engine.state == "crashed":
            self._dead[engine_id] = was, engine.reason or "no reason known"
        for each in [each for each in self._open if each.engine == engine_id]:
            self._settle(each)

    def explain(self, engine: str, client: Client, error: PunaError, finish: Finish) -> None:
        """The work in an engine broke off with `error`. `finish` is called with what it really was, now or later."""
        found = _Open(engine, client, error, finish)
        if self._ready.get(engine) is not client:
            self._settle(found)
            return
        self._open.append(found)
        asyncio.get_running_loop().call_later(CAUSE_WAIT_S, self._waited, found)

    def _waited(self, found: _Open) -> None:
        if found in self._open:
            self._settle(found)

    def _settle(self, found: _Open) -> None:
        if found in self._open:
            self._open.remove(found)
        found.finish(self._cause(found))

    def _cause(self, found: _Open) -> PunaError:
        dead = self._dead.get(found.engine)
        if dead is None or dead[0] is not found.client:
            return found.error
        return EngineDied(f"the engine died while it worked on the request: {dead[1]}")


class Suspects:
    """Requests that have killed an engine before, by the engine that they are in now."""

    def __init__(self) -> None:
        self._inside: dict[object, str] = {}

    def enter(self, engine: str, work: Work, holder: object) -> None:
        """The work on a request begins."""
        if work.head.deaths:
            self._inside[holder] = engine

    def leave(self, holder: object) -> None:
        """It is over."""
        if self._inside:
            self._inside.pop(holder, None)

    def closed_to(self, work: Work) -> Collection[str]:
        """Engines that the request must not run in: two suspects in one engine would hide which of them it was."""
        return frozenset(self._inside.values()) if work.head.deaths else ()
