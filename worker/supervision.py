"""The run loop of one engine: the only owner of its process and the only writer of its state."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import Any

from schemas.node import Capabilities, EngineState, ReasonCode
from web.client import Client
from worker.enginespec import EngineSettings
from worker.enginestate import check_move
from worker.life import Home, Life, StartFailed
from worker.loadtimes import LoadTimes

log = logging.getLogger(__name__)

_ANOTHER_PORT_DELAY_S = 0.05
_DOUBLINGS_LIMIT = 30


class Supervision:
    """Runs an engine from `run` until it is asked to stop; a process that ends by itself is started again.

    `ask_stop` and `ask_try` leave a wish; `stops` counts the stops that were carried out. `on_move` is called after
    each change, also of pid, reason and breaker, from the loop.
    """

    def __init__(self, home: Home, load_times: LoadTimes, on_move: Callable[[], None]) -> None:
        self.state: EngineState = "stopped"
        self.since = time.time()
        self.reason: str | None = None
        self.reason_code: ReasonCode | None = None
        self.next_retry_at: float | None = None
        self.load_seconds: float | None = None
        self.capabilities = Capabilities()
        self.unfit = False
        self.client: Client | None = None
        self.life: Life | None = None
        self.failures = 0
        self.stops = 0
        self._home = home
        self._settings: EngineSettings = home.settings
        self._load_times = load_times
        self._on_move = on_move
        self._stop = asyncio.Event()
        self._try = asyncio.Event()
        self._grace_s = home.settings.stop_grace_s
        self._why: tuple[str, ReasonCode] = ("asked to stop", "user-requested")
        self._leaving = False
        self._given: Life | None = None
        self._stable: asyncio.TimerHandle | None = None

    # -- wishes
    def ask_stop(self, grace_s: float, why: str = "asked to stop", code: ReasonCode = "user-requested") -> None:
        """Wish for the end of it."""
        self._grace_s = grace_s
        self._why = (why, code)
        self._stop.set()

    def ask_leave(self) -> None:
        """Wish for the end of our part in it: a ready engine goes on without us, any other is stopped."""
        self._leaving = True
        self.ask_stop(0.0, "left to the next worker", "shutdown")

    def ask_try(self) -> None:
        """Wish for the next try at once, if it waits for one."""
        self._try.set()

    def give(self, life: Life) -> None:
        """The first life is this one, which runs already. Before `run`."""
        self._given = life

    @property
    def breaker_open(self) -> bool:
        """It failed so often in a row that nobody waits for it."""
        return self.failures >= self._settings.give_up_waiting_after

    # -- the loop
    async def run(self, wanted: Callable[[], bool]) -> None:
        """Until a stop was carried out and it is not `wanted` any more."""
        while True:
            await self._live()
            if self._stop.is_set():
                self._stop.clear()
                self.stops += 1
                self.failures = 0
                self._move("stopped", *self._why)
                if not wanted():
                    return

    async def _live(self) -> None:
        """One process from its start until nothing of it is left; then, after a crash, the pause."""
        self._try.clear()
        given, self._given = self._given, None
        if given is not None:
            self._move("starting", "taking over the running engine", "adopting")
        else:
            self._move("starting", "loading the model", "loading")
        try:
            self.life = given or await Life.begin(self._home)
            self._on_move()
            await self._serve(self.life)
        except StartFailed as failure:
            self._crash(failure.reason, failure.code, another_port=failure.another_port, unfit=failure.unfit)
        finally:
            await self._clear_away()
        if self.state == "crashed":
            await self._pause()

    async def _serve(self, life: Life) -> None:
        """Raises `StartFailed`. Else the state is `stopping` or `crashed` afterwards."""
        began = time.monotonic()
        engine = self._home.engine_id
        stop = asyncio.create_task(self._stop.wait(), name=f"stop {engine}")
        getting = asyncio.create_task(life.ready(), name=f"load {engine}")
        hanging = asyncio.create_task(life.hang(lambda: self.state == "ready"), name=f"watch {engine}")
        tasks = (stop, getting, hanging)
        try:
            await _first(stop, getting, hanging)
            if getting.done() and not stop.done():
                self._ready(life, getting.result(), time.monotonic() - began)
                await _first(stop, hanging, life.process.exited)
            await self._over(life, stop, hanging)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _over(self, life: Life, stop: asyncio.Task[Any], hanging: asyncio.Task[str]) -> None:
        """A process that has been served is not any more: it ended, it hangs, or it is to stop."""
        if self.state == "ready" and life.process.exited.done():
            await self._ended(life)
        elif hanging.done() and not stop.done():
            self._crash(hanging.result(), "hang")
        else:
            self._move("stopping", *self._why)

    def _ready(self, life: Life, capabilities: Capabilities, load_s: float) -> None:
        self.capabilities = capabilities
        life.serves(load_s)
        self.load_seconds = life.load_seconds
        if not life.adopted:
            self._load_times.remember(self._home.spec.path, load_s)
        self._move("ready", client=life.client)
        self._stable = asyncio.get_running_loop().call_later(self._settings.stable_after_s, self._proved_stable)

    def _proved_stable(self) -> None:
        was_open, self.failures = self.breaker_open, 0
        if was_open:
            self._on_move()

    async def _ended(self, life: Life) -> None:
        """The state is told at once; why it ended, as soon as its last words are here."""
        first = life.ending()
        self._crash(first.text, first.code)
        cause = await life.cause()
        if cause != first:
            self._say(cause.text, cause.code)
            self._on_move()

    def _crash(self, reason: str, code: ReasonCode, *, another_port: bool = False, unfit: bool = False) -> None:
        self.failures += 1
        delay_s = _ANOTHER_PORT_DELAY_S if another_port and not self.breaker_open else self._delay_s()
        self._move("crashed", reason, code, next_retry_at=time.time() + delay_s, unfit=unfit)

    def _delay_s(self) -> float:
        doubled = self._settings.restart_delay_s * 2 ** min(self.failures - 1, _DOUBLINGS_LIMIT)
        return min(self._settings.restart_delay_cap_s, doubled) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    async def _clear_away(self) -> None:
        """A stopped engine gets its grace; of a crashed one nobody waits for anything."""
        if (life := self.life) is None:
            return
        if self._leaving and self.state == "stopping" and life.load_seconds is not None:
            life.leave()
        else:
            await life.end(self._grace_s if self.state == "stopping" else 0.0)
        self.life = None

    async def _pause(self) -> None:
        wishes = {asyncio.create_task(self._stop.wait()), asyncio.create_task(self._try.wait())}
        left_s = (self.next_retry_at or 0.0) - time.time()
        try:
            await asyncio.wait(wishes, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wish in wishes:
                wish.cancel()
        if self._try.is_set():
            self.failures = 0

    # -- the state
    def _move(
        self,
        state: EngineState,
        reason: str | None = None,
        code: ReasonCode | None = None,
        *,
        client: Client | None = None,
        next_retry_at: float | None = None,
        unfit: bool = False,
    ) -> None:
        check_move(self.state, state)
        if self._stable is not None:
            self._stable.cancel()
            self._stable = None
        self.state, self.since = state, time.time()
        self.client, self.next_retry_at, self.unfit = client, next_retry_at, unfit
        self._say(reason, code)
        self._tell()
        self._on_move()

    def _say(self, reason: str | None, code: ReasonCode | None) -> None:
        if self.state == "crashed" and self.breaker_open and not self.unfit:
            left_s = max(0.0, (self.next_retry_at or 0.0) - time.time())
            text = f"failed {self.failures} times in a row, last: {reason}; next try in {left_s:.0f} s"
            self.reason, self.reason_code = text, "breaker"
        else:
            self.reason, self.reason_code = reason, code

    def _tell(self) -> None:
        pid = self.life.process.pid if self.life else None
        level = logging.WARNING if self.state == "crashed" else logging.INFO
        fields = {"event": f"engine_{self.state}", "engine": self._home.engine_id, "model": self._home.spec.model}
        fields |= {"reason_code": self.reason_code, "adopted": bool(self.life and self.life.adopted)}
        log.log(level, "engine %s", self.state, extra=fields | {"engine_pid": pid, "reason": self.reason})


async def _first(*waited: asyncio.Future[Any]) -> None:
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
