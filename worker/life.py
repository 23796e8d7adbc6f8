"""One process of an engine, from its port to the moment when nothing of it is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from schemas.errors import Unavailable
from schemas.node import Capabilities, ReasonCode
from web.client import Client
from worker.adoption import Adoptable, fingerprint
from worker.backend import Launch, Running
from worker.crashes import Cause, died, failed_start, killed, port_was_taken
from worker.enginelog import EngineLog
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.gguf import BadGguf
from worker.launch import HOST, Command, Confinement, command
from worker.loading import Unfit
from worker.loadtimes import model_bytes
from worker.orphans import HOME_VARIABLE, Note, Notebook
from worker.ports import PortLease, PortPool
from worker.process import HoldRefused, MinderTerms, hold, launch
from worker.readiness import Probe, probe
from worker.remains import started_at
from worker.watchdog import MemoryDeaths, Patient, Rhythm, hang

_LAST_WORDS_S: Final = 0.5
_PROBE_GROWTH: Final = 1.3
_SHOWN_LINES: Final = 40
_PROOF_S: Final = 5.0
"""For an engine that is taken over to answer."""


class StartFailed(Exception):
    """An engine did not get ready. With `another_port`, only its port was to blame; with `unfit`, no process was
    started."""

    def __init__(
        self,
        reason: str,
        code: ReasonCode = "failed-to-start",
        *,
        another_port: bool = False,
        unfit: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code: ReasonCode = code
        self.another_port = another_port
        self.unfit = unfit


class NotAdopted(Exception):
    """An engine of an earlier life cannot be taken over. The text says why. `held`: another worker has it, so that it
    must be left alone."""

    def __init__(self, why: str, *, held: bool = False) -> None:
        super().__init__(why)
        self.held = held


def unconfined(engine_id: str) -> Confinement:
    """No limits."""
    return Confinement()


def nothing_to_free(engine_id: str) -> None:
    """Nothing was made for the engine."""


def nobody_asks(step: str) -> None:
    """Nobody wants to know how far a start is."""


@dataclass(frozen=True, slots=True)
class Home:
    """What an engine's lives share. `prepare` gives the spec for one start, or raises `Unfit`; `confine` the limits of
    one start; `oom` tells whether the system has killed something of the engine for lack of memory; `busy` how many
    requests are in it; `launch` starts the process; `step` hears how far a start has come."""

    engine_id: str
    spec: EngineSpec
    binary: EngineBinary
    settings: EngineSettings
    ports: PortPool
    notes: Notebook
    log: EngineLog
    prepare: Callable[[], Awaitable[EngineSpec]]
    confine: Callable[[str], Confinement] = unconfined
    free: Callable[[str], None] = nothing_to_free
    oom: Callable[[], bool | None] | None = None
    busy: Callable[[], int] | None = None
    launch: Launch = launch
    step: Callable[[str], None] = nobody_asks


class Life:
    """A started process. `client` reaches it; use it for requests only after `ready`."""

    def __init__(self, home: Home, lease: PortLease, process: Running, key: str) -> None:
        self._home = home
        self._lease = lease
        self._key = key
        self._note: Note | None = None
        self._deaths = MemoryDeaths(home.oom)
        self._seen = Probe("silent", "nothing answers on its port")
        self.process = process
        self.client = _client(lease.port, key)
        self.port = lease.port
        self.adopted = False
        self.load_seconds: float | None = None

    # -- the beginning
    @staticmethod
    async def begin(home: Home) -> Life:
        """Start a process. Raises `StartFailed`."""
        try:
            spec = await home.prepare()
        except Unfit as error:
            raise StartFailed(error.reason, "model-unfit", unfit=True) from error
        home.step("checked")
        try:
            lease = home.ports.lease()
        except (Unavailable, OSError) as error:
            raise StartFailed(str(error)) from error
        home.step("port_leased")
        try:
            return await Life._on(home, spec, lease)
        except OSError as error:
            lease.release()
            await asyncio.to_thread(home.free, home.engine_id)
            raise StartFailed(f"cannot start {home.binary.argv[0]}: {error.strerror or error}") from error
        except BaseException:
            lease.release()
            raise

    @staticmethod
    async def _on(home: Home, spec: EngineSpec, lease: PortLease) -> Life:
        confinement = await asyncio.to_thread(home.confine, home.engine_id)
        home.step("confined")
        plain = command(home.binary, spec, lease.port, os.environ, confinement)
        what = replace(plain, environment={**plain.environment, HOME_VARIABLE: home.notes.home})
        home.log.begin(secret=what.key)
        terms = MinderTerms(home.settings.orphan_grace_s, home.settings.log_ring_bytes)
        life = Life(home, lease, await home.launch(what, home.log, terms), what.key)
        home.step("started")
        life._remember(_note(home, spec, life.process, what))
        return life

    @staticmethod
    async def adopt(home: Home, found: Adoptable) -> Life:
        """Take over a running engine, if it is the one that would be started now and answers. Raises `NotAdopted`."""
        note = found.note
        try:
            wanted = await asyncio.to_thread(fingerprint, home.binary, home.spec)
        except (OSError, BadGguf) as error:
            raise NotAdopted(f"its model cannot be read: {error}") from error
        if wanted != note.fingerprint:
            raise NotAdopted("another build, model file, flag or environment is wanted now")
        lease = home.ports.reclaim(note.port)
        if lease is None:
            raise NotAdopted(f"port {note.port} is another worker's by now", held=True)
        try:
            return await Life._taken_over(home, note, lease)
        except BaseException:
            lease.release()
            raise

    @staticmethod
    async def _taken_over(home: Home, note: Note, lease: PortLease) -> Life:
        home.log.begin(secret=note.key)
        try:
            process = await hold(Path(note.socket), note.tag, note.minder_pid, home.log)
        except HoldRefused as error:
            raise NotAdopted(str(error), held=error.held) from error
        life = Life(home, lease, process, note.key)
        try:
            await life._prove(note)
        except BaseException:
            process.leave()
            raise
        life.adopted, life.load_seconds = True, note.load_seconds
        mine = Note.of(process.pid, note.tag, note.port)
        if mine is not None:
            life._remember(replace(note, worker_pid=mine.worker_pid, worker_started_at=mine.worker_started_at))
        return life

    async def _prove(self, note: Note) -> None:
        """Is it the noted process, and does it serve the model to who has the key?"""
        if self.process.pid != note.pid:
            raise NotAdopted("its minder minds another process")
        try:
            async with asyncio.timeout(_PROOF_S):
                seen = await probe(self.client, self._home.spec.model)
        except TimeoutError as error:
            raise NotAdopted(f"no answer in {_PROOF_S:g} s") from error
        if seen.verdict != "ready":
            raise NotAdopted(seen.detail)

    # -- getting ready
    async def ready(self) -> Capabilities:
        """Wait until it serves. Raises `StartFailed` when it ends, takes too long or is not the one that answers."""
        limit_s = self._limit_s()
        looking = asyncio.create_task(self._look(), name=f"probe {self._home.engine_id}")
        try:
            await asyncio.wait({looking, self.process.exited}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if self.process.exited.done():
                raise await self._failed()
            if not looking.done():
                text = f"not ready after {limit_s:g} s (startup_timeout_s); last seen: {self._seen.detail}"
                raise StartFailed(text, "start-timeout")
            return looking.result()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    def serves(self, load_seconds: float) -> None:
        """It is ready and gets requests from now on."""
        self.process.mark_requests()
        if not self.adopted:
            self.load_seconds = load_seconds
        if self._note is not None:
            self._remember(replace(self._note, ready=True, load_seconds=self.load_seconds))

    async def _look(self) -> Capabilities:
        """Probe with growing pauses, so that a small model is ready at once and a big one is left in peace."""
        pause_s = self._home.settings.first_probe_s
        while True:
            self._seen = await probe(self.client, self._home.spec.model)
            if self._seen.verdict == "ready":
                return self._seen.capabilities
            if self._seen.verdict == "stranger":
                raise StartFailed(self._seen.detail, "port-taken", another_port=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * _PROBE_GROWTH, self._home.settings.probe_interval_s)

    async def hang(self, is_ready: Callable[[], bool]) -> str:
        """Until it works no more, although its process is there; returns the reason."""
        settings = self._home.settings
        patient = Patient(self.process.pid, self.client, self._home.busy, is_ready, self._deaths.look)
        rhythm = Rhythm(settings.watch_interval_s, settings.health_interval_s, settings.hang_timeout_s)
        return await hang(patient, rhythm)

    # -- the end
    async def _failed(self) -> StartFailed:
        code = await self.process.exited
        if self.process.minder_lost:
            return StartFailed(_minder_lost().text, "process-not-found")
        lines = await self._last_words()
        cause = failed_start(code, lines, no_memory=killed(code) and self._deaths.happened())
        return StartFailed(cause.text, cause.code, another_port=port_was_taken(lines))

    def ending(self) -> Cause:
        """Why a process that had been ready ended, as far as its exit code tells."""
        if self.process.minder_lost:
            return _minder_lost()
        code = self.process.exited.result()
        return died(code, (), no_memory=killed(code) and self._deaths.happened())

    async def cause(self) -> Cause:
        """The same with what its last words tell."""
        code = await self.process.exited
        if self.process.minder_lost or killed(code):
            return self.ending()
        return died(code, await self._last_words())

    async def end(self, grace_s: float) -> None:
        """End it, by SIGKILL after `grace_s`, and wait until all of it is gone. Then its port rests."""
        try:
            await self.process.end(grace_s)
        finally:
            self.client.close()
            self._home.notes.erase(self._home.engine_id)
            self._lease.release()
            await asyncio.to_thread(self._home.free, self._home.engine_id)

    def leave(self) -> None:
        """Let it run for the next worker, which has `orphan_grace_s` to come. Its port stays leased until we end."""
        self.client.close()
        self.process.leave()

    async def _last_words(self) -> list[str]:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self.process.output_ended.wait()
        return self._home.log.life(_SHOWN_LINES)

    def _limit_s(self) -> float:
        try:
            return self._home.settings.startup_limit_s(model_bytes(self._home.spec.path))
        except OSError as error:
            raise StartFailed(f"the model file {self._home.spec.path} cannot be read: {error.strerror}") from error

    def _remember(self, note: Note | None) -> None:
        self._note = note
        if note is not None:
            self._home.notes.write(self._home.engine_id, note)


def _minder_lost() -> Cause:
    return Cause("its minder was killed, and it ended with that", "process-not-found")


def _note(home: Home, spec: EngineSpec, process: Running, what: Command) -> Note | None:
    """What the next life needs. An engine whose files cannot be told is not taken over."""
    try:
        print_ = fingerprint(home.binary, home.spec)
    except (OSError, BadGguf):
        print_ = ""
    return Note.of(
        process.pid,
        what.tag,
        what.port,
        minder_pid=process.minder_pid,
        minder_started_at=started_at(process.minder_pid) or 0.0,
        socket=str(process.socket_path),
        key=what.key,
        fingerprint=print_,
        model=spec.model,
        devices=spec.devices,
        slots=spec.slots,
        context_tokens=spec.context_tokens,
        scratch=what.confinement.scratch,
        cgroup=what.confinement.cgroup,
    )


def _client(port: int, key: str) -> Client:
    return Client(HOST, port, headers=[("authorization", f"Bearer {key}")], spare=True)
