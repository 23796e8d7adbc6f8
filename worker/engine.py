"""One engine: a model served by one process at a time, started again when it fails.

The run loop (`supervision`) owns process and state. Everybody else leaves a wish and waits for what comes of it:

| asked          | stopped | starting | ready      | crashed                            | stopping          |
|----------------|---------|----------|------------|------------------------------------|-------------------|
| `want`         | starts  | -        | -          | -                                  | starts afterwards |
| `start`        | starts  | waits    | returns    | tries at once                      | starts afterwards |
| `ensure_ready` | starts  | waits    | the client | waits; refuses after three in a row | starts afterwards |
| `stop`         | returns | ends it  | ends it    | ends the tries                     | waits             |
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from schemas.errors import ModelLoading, Unavailable
from schemas.node import Capabilities, Device, EngineState, ReasonCode
from schemas.node import Engine as Snapshot
from web.client import Client
from worker.adoption import Adoptable
from worker.backend import Launch
from worker.enginelog import EngineLog
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.launch import Confinement, engine_argv
from worker.life import Home, Life, NotAdopted, nothing_to_free, unconfined
from worker.loading import Load, Loader, Unfit
from worker.loadtimes import LoadTimes
from worker.orphans import Notebook
from worker.ports import PortPool
from worker.process import launch
from worker.remains import Remains, end_remains
from worker.standing import standing
from worker.supervision import Supervision

log = logging.getLogger(__name__)

_PROGRESS_LIMIT = 0.95
_RETRY_AFTER_S = 5.0


class Engine:
    """A supervised engine. `on_change` is called after each change of its state, from the event loop.

    `loader` is asked before each start; without one the model's files are checked and no memory is counted. `confine`
    gives the limits of each start by engine id, `free` takes back what was made for them, `oom` tells whether the
    system killed it for lack of memory, `busy` how many requests are in it; without `busy` an idle engine is asked
    nothing, so that only a stopped process counts as hung. `launch` starts its processes.
    Raises `FlagRefused` for a profile with a flag that may not be set.
    """

    def __init__(
        self,
        engine_id: str,
        spec: EngineSpec,
        binary: EngineBinary,
        *,
        ports: PortPool,
        state_dir: Path,
        settings: EngineSettings,
        loader: Loader | None = None,
        confine: Callable[[str], Confinement] = unconfined,
        free: Callable[[str], None] = nothing_to_free,
        oom: Callable[[], bool | None] | None = None,
        busy: Callable[[], int] | None = None,
        launch: Launch = launch,
        on_change: Callable[[Engine], None] = lambda _: None,
    ) -> None:
        engine_argv(binary, spec, port=0)
        self.engine_id = engine_id
        self.spec = spec
        self.binary = binary
        self.log = EngineLog(settings.log_ring_bytes)
        self._settings = settings
        self._on_change = on_change
        self._load_times = LoadTimes(state_dir / "loads")
        self._loader = loader or Loader(state_dir / "loads", _no_devices)
        self._load: Load | None = None
        self._measured_bytes: int | None = None
        self.step: str | None = None
        """How far its last start has come: `checked`, `port_leased`, `confined`, `started`."""
        notes = Notebook(state_dir / "engines")
        self._home = Home(
            engine_id,
            spec,
            binary,
            settings,
            ports,
            notes,
            self.log,
            self._prepare,
            confine,
            free,
            oom,
            busy,
            launch,
            self._stepped,
        )
        self._loop = Supervision(self._home, self._load_times, self._moved)
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._changed = asyncio.Event()

    # -- asking
    def want(self) -> None:
        """Ask for the engine to run, without waiting."""
        self._wanted = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"engine {self.engine_id}")
            self._task.add_done_callback(self._run_ended)

    async def start(self) -> None:
        """Run it and wait until it is ready.

        Raises `Unavailable` if this try fails; further tries follow by themselves until `stop`.
        """
        self.want()
        if self.state == "crashed":
            self._loop.ask_try()
            await self._until(lambda: self.state != "crashed")
        await self._until(lambda: self.state in ("ready", "crashed") or not self._wanted)
        if self.state != "ready":
            raise self._unavailable()

    async def stop(
        self, grace_s: float | None = None, *, why: str = "asked to stop", code: ReasonCode = "user-requested"
    ) -> None:
        """End it: SIGTERM, after `grace_s` SIGKILL. Returns when nothing of it is left. May be called twice.

        `why` and `code` are its reason from now on.
        """
        self._wanted = False
        if self._task is None:
            return
        goal = self._loop.stops + 1
        self._loop.ask_stop(self._settings.stop_grace_s if grace_s is None else grace_s, why, code)
        await self._until(lambda: self._loop.stops >= goal or self._task is None)

    async def leave(self) -> None:
        """Let a ready engine run on for the next worker, which has `orphan_grace_s` to adopt it; stop any other."""
        self._wanted = False
        if self._task is None:
            return
        goal = self._loop.stops + 1
        self._loop.ask_leave()
        await self._until(lambda: self._loop.stops >= goal or self._task is None)

    async def restart(self, *, why: str = "asked to restart", code: ReasonCode = "restart") -> None:
        """`stop`, then `start`."""
        await self.stop(why=why, code=code)
        await self.start()

    async def adopt(self, found: Adoptable) -> bool:
        """Take over an engine that an earlier life of this worker left running, if it is what `start` would start now.

        True: it is ready, and nothing was loaded. False: it is ended, unless another worker has taken it, and this
        engine is stopped; the log says why.
        Raises `RuntimeError` for an engine that runs already.
        """
        if self._task is not None:
            raise RuntimeError(f"{self.engine_id} runs already and adopts nothing")
        began = time.monotonic()
        try:
            life = await Life.adopt(self._home, found)
        except NotAdopted as refusal:
            if not refusal.held:
                await asyncio.to_thread(found.end)
            _tell_adoption("engine_not_adopted", found, reason=str(refusal))
            return False
        await self._describe(found)
        self._loop.give(life)
        self.want()
        await self._until(lambda: self.state in ("ready", "crashed") or not self._wanted)
        if self.state == "ready":
            _tell_adoption("engine_adopted", found, took_s=round(time.monotonic() - began, 3))
        return self.state == "ready"

    async def ensure_ready(self, deadline_s: float) -> Client:
        """The client of a ready engine, which is started if need be; waits at most `deadline_s`.

        Raises `ModelLoading` when it takes longer, `Unavailable` when it was stopped or has failed repeatedly.
        """
        if self.client is not None:
            return self.client
        self.want()
        try:
            async with asyncio.timeout(deadline_s):
                await self._until(lambda: self.client is not None or self._hopeless())
        except TimeoutError as error:
            raise self._still_loading(deadline_s) from error
        if self.client is None:
            raise self._unavailable()
        return self.client

    # -- telling
    @property
    def state(self) -> EngineState:
        """One of the states of `enginestate.MOVES`."""
        return self._loop.state

    @property
    def since(self) -> float:
        """Unix seconds at which the state was entered."""
        return self._loop.since

    @property
    def reason(self) -> str | None:
        """Why it is in this state; None when all is well."""
        return self._loop.reason

    @property
    def reason_code(self) -> ReasonCode | None:
        """The same for programs."""
        return self._loop.reason_code

    @property
    def adopted(self) -> bool:
        """Whether its process was started by an earlier life of this worker."""
        return self._loop.life is not None and self._loop.life.adopted

    @property
    def breaker_open(self) -> bool:
        """Whether it failed so often in a row that nobody waits for it; closed once it was ready `stable_after_s`."""
        return self._loop.breaker_open

    @property
    def remains(self) -> Remains | None:
        """By what its process and everything that it started are known, while there is one."""
        return self._loop.life.process.remains if self._loop.life else None

    @property
    def next_retry_at(self) -> float | None:
        """Unix seconds of the next try of a crashed engine."""
        return self._loop.next_retry_at

    @property
    def load_seconds(self) -> float | None:
        """How long the last load took, by this worker or an earlier one; None if there was none."""
        return self._loop.load_seconds or self._load_times.last_s(self.spec.path)

    @property
    def capabilities(self) -> Capabilities:
        """What the model's files say, and over it what the engine said when it got ready."""
        told = self._loop.capabilities
        return self._load.capabilities.model_copy(update=told.model_dump(exclude_defaults=True)) if self._load else told

    @property
    def client(self) -> Client | None:
        """For requests to it; only while it is ready."""
        return self._loop.client

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._loop.life.process.pid if self._loop.life else None

    @property
    def port(self) -> int | None:
        """The engine's port on the loopback, while there is a process."""
        return self._loop.life.port if self._loop.life else None

    @property
    def progress(self) -> float | None:
        """How far a load is, from 0 to 1, judged by the last one's time; None when not loading or not known."""
        expected_s = self.load_seconds if self.state == "starting" else None
        return min(_PROGRESS_LIMIT, max(0.0, time.time() - self.since) / expected_s) if expected_s else None

    def snapshot(self, slots_busy: int = 0) -> Snapshot:
        """What the heartbeat says of it."""
        return Snapshot(
            engine=self.engine_id,
            model=self.spec.model,
            devices=self.spec.devices,
            state=self.state,
            slots_total=self.spec.slots,
            slots_busy=slots_busy,
            pid=self.pid,
            since=self.since,
            reason=self.reason,
            reason_code=self.reason_code,
            adopted=self.adopted,
            breaker_open=self.breaker_open,
            progress=self.progress,
            next_retry_at=self.next_retry_at,
            load_seconds=self.load_seconds,
            capabilities=self.capabilities,
            unfit=self._loop.unfit,
            memory_planned_bytes=self._load.needed_bytes if self._load else None,
            memory_plan=self._load.text() if self._load else None,
            memory_measured_bytes=self._measured_bytes,
        )

    async def mend(self) -> None:
        """Its process is gone, or not to be reached, and nobody has told: end what is left, and start it again."""
        if (life := self._loop.life) is not None:
            await asyncio.to_thread(end_remains, life.process.remains)

    async def measure(self) -> None:
        """Look at what the loaded process takes, for the heartbeat and for later plans."""
        load, pid = self._load, self.pid
        if load is not None and pid is not None:
            taken = await self._loader.measured(load, pid)
            self._measured_bytes = taken if self.pid == pid else None

    # -- the loop
    async def _describe(self, found: Adoptable) -> None:
        """What is known of the model of an engine that was loaded in an earlier life."""
        spec = replace(self.spec, context_tokens=found.note.context_tokens)
        try:
            self._load = await self._loader.running(spec)
        except Unfit as unfit:
            self._load = unfit.load

    def _stepped(self, step: str | None) -> None:
        self.step = step
        self._moved()

    async def _prepare(self) -> EngineSpec:
        self._measured_bytes = None
        self._stepped(None)
        try:
            self._load = await self._loader.prepare(self.engine_id, self.spec)
        except Unfit as unfit:
            self._load = unfit.load
            raise
        return self._load.spec

    async def _run(self) -> None:
        await self._loop.run(lambda: self._wanted)
        # at once with the loop's last look at the wish, so that a later wish meets no loop that is about to end
        self._task = None

    def _run_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        fields = {"event": "engine_loop_died", "engine": self.engine_id}
        log.critical("the run loop of an engine died", exc_info=error, extra=fields)
        self._task = None
        self._loop = Supervision(self._home, self._load_times, self._moved)
        if self._wanted:
            self.want()
        self._wake()

    def _moved(self) -> None:
        if self.state != "starting":
            self._loader.release(self.engine_id)
        self._wake()
        try:
            self._on_change(self)
        except Exception:  # a listener's fault must not end the engine
            log.exception("a listener failed", extra={"event": "engine_listener_failed", "engine": self.engine_id})

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await self._changed.wait()

    def _hopeless(self) -> bool:
        failed = self._loop.unfit or (self.state == "crashed" and self._loop.breaker_open)
        return failed or not self._wanted

    def _unavailable(self) -> Unavailable:
        text = f"model {self.spec.model}: its engine is {self.state}" + (f": {self.reason}" if self.reason else "")
        return Unavailable(text, retry_after_s=self._retry_after_s())

    def _still_loading(self, waited_s: float) -> ModelLoading:
        why = self.reason or self.state
        text = f"model {self.spec.model} was not ready within {waited_s:g} s: {why}"
        error = ModelLoading(text, retry_after_s=self._retry_after_s())
        error.loading = standing([self.snapshot()], None).told()
        return error

    def _retry_after_s(self) -> float:
        if self.next_retry_at is not None:
            return max(1.0, self.next_retry_at - time.time())
        return max(1.0, (self.load_seconds or _RETRY_AFTER_S) - (time.time() - self.since))


def _tell_adoption(event: str, found: Adoptable, **more: object) -> None:
    fields = {"event": event, "engine": found.engine_id, "model": found.model, "engine_pid": found.note.pid}
    log.info(event, extra=fields | more)


async def _no_devices() -> tuple[Device, ...]:
    return ()
