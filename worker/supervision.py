"""The run loop of one engine: the only owner of its process and the only writer of its state."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from schemas.node import Capabilities, EngineState
from web.client import Client
from worker.crashes import ending
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
    each change, also of pid and reason, from the loop.
    """

    def __init__(self, home: Home, load_times: LoadTimes, on_move: Callable[[], None]) -> None:
        self.state: EngineState = "stopped"
        self.since = time.time()
        self.reason: str | None = None
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

    def ask_stop(self, grace_s: float) -> None:
        """Wish for the end of it."""
        self._grace_s = grace_s
        self._stop.set()

    def ask_try(self) -> None:
        """Wish for the next try at once, if it waits for one."""
        self._try.set()

    async def run(self, wanted: Callable[[], bool]) -> None:
        """Until a stop was carried out and it is not `wanted` any more."""
        while True:
            await self._live()
            if self._stop.is_set():
                self._stop.clear()
                self.stops += 1
                self.failures = 0
                self._move("stopped")
                if not wanted():
                    return

    async def _live(self) -> None:
        """One process from its start until nothing of it is left; then, after a crash, the pause."""
        self._try.clear()
        self._move("starting", "loading the model")
        try:
            self.life = await Life.begin(self._home)
            self._on_move()
            await self._serve(self.life)
        except StartFailed as failure:
            self._crash(failure.reason, another_port=failure.another_port, unfit=failure.unfit)
        finally:
            await self._clear_away()
        if self.state == "crashed":
            await self._pause()

    async def _serve(self, life: Life) -> None:
        """Raises `StartFailed`. Else the state is `stopping` or `crashed` afterwards."""
        began = time.monotonic()
        stop = asyncio.create_task(self._stop.wait(), name=f"stop {self._home.engine_id}")
        getting = asyncio.create_task(life.ready(), name=f"load {self._home.engine_id}")
        try:
            await asyncio.wait({stop, getting}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.done():
                self._ready(life, getting.result(), time.monotonic() - began)
                await asyncio.wait({stop, life.process.exited}, return_when=asyncio.FIRST_COMPLETED)
            if self.state == "ready" and life.process.exited.done():
                await self._ended(life)
            else:
                self._move("stopping", "asked to stop")
        finally:
            stop.cancel()
            getting.cancel()
            await asyncio.gather(stop, getting, return_exceptions=True)

    def _ready(self, life: Life, capabilities: Capabilities, load_s: float) -> None:
        self.capabilities = capabilities
        self.load_seconds = load_s
        self._load_times.remember(self._home.spec.path, load_s)
        self._home.log.requests_begin()
        self._move("ready", client=life.client)

    async def _ended(self, life: Life) -> None:
        """The state is told at once; why it ended, as soon as its last words are here."""
        if time.time() - self.since >= self._settings.stable_after_s:
            self.failures = 0
        self._crash(f"ended by itself: {ending(life.process.exited.result())}")
        if (cause := await life.cause()) != self.reason:
            self.reason = cause
            self._on_move()

    def _crash(self, reason: str, *, another_port: bool = False, unfit: bool = False) -> None:
        self.failures += 1
        delay_s = _ANOTHER_PORT_DELAY_S if another_port else self._delay_s()
        self._move("crashed", reason, next_retry_at=time.time() + delay_s, unfit=unfit)

    def _delay_s(self) -> float:
        doubled = self._settings.restart_delay_s * 2 ** min(self.failures - 1, _DOUBLINGS_LIMIT)
        return min(self._settings.restart_delay_cap_s, doubled) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    async def _clear_away(self) -> None:
        """A stopped engine gets its grace; of a crashed one nobody waits for anything."""
        if (life := self.life) is not None:
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

    def _move(
        self,
        state: EngineState,
        reason: str | None = None,
        *,
        client: Client | None = None,
        next_retry_at: float | None = None,
        unfit: bool = False,
    ) -> None:
        check_move(self.state, state)
        self.state, self.reason, self.since = state, reason, time.time()
        self.client, self.next_retry_at, self.unfit = client, next_retry_at, unfit
        self._tell()
        self._on_move()

    def _tell(self) -> None:
        pid = self.life.process.pid if self.life else None
        level = logging.WARNING if self.state == "crashed" else logging.INFO
        fields = {"event": f"engine_{self.state}", "engine": self._home.engine_id, "model": self._home.spec.model}
        log.log(level, "engine %s", self.state, extra=fields | {"engine_pid": pid, "reason": self.reason})
