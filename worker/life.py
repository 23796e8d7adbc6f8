"""One process of an engine, from its port to the moment when nothing of it is left."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from schemas.errors import Unavailable
from schemas.node import Capabilities
from web.client import Client
from worker.crashes import died, failed_start, port_was_taken
from worker.enginelog import EngineLog
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.launch import HOST, command
from worker.loading import Unfit
from worker.loadtimes import model_bytes
from worker.orphans import Note, Notebook
from worker.ports import PortLease, PortPool
from worker.process import EngineProcess, launch
from worker.readiness import Probe, probe

_LAST_WORDS_S: Final = 0.5
_PROBE_GROWTH: Final = 1.3
_SHOWN_LINES: Final = 40


class StartFailed(Exception):
    """An engine did not get ready. With `another_port`, only its port was to blame; with `unfit`, no process was
    started."""

    def __init__(self, reason: str, *, another_port: bool = False, unfit: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.another_port = another_port
        self.unfit = unfit


@dataclass(frozen=True, slots=True)
class Home:
    """What an engine's lives share. `prepare` gives the spec for one start, or raises `Unfit`."""

    engine_id: str
    spec: EngineSpec
    binary: EngineBinary
    settings: EngineSettings
    ports: PortPool
    notes: Notebook
    log: EngineLog
    prepare: Callable[[], Awaitable[EngineSpec]]


class Life:
    """A started process. `client` reaches it; use it for requests only after `ready`."""

    def __init__(self, home: Home, lease: PortLease, process: EngineProcess, client: Client) -> None:
        self._home = home
        self._lease = lease
        self.process = process
        self.client = client
        self.port = lease.port
        self._seen = Probe("silent", "nothing answers on its port")

    @staticmethod
    async def begin(home: Home) -> Life:
        """Start a process. Raises `StartFailed`."""
        try:
            spec = await home.prepare()
        except Unfit as error:
            raise StartFailed(error.reason, unfit=True) from error
        try:
            lease = home.ports.lease()
        except (Unavailable, OSError) as error:
            raise StartFailed(str(error)) from error
        try:
            return await Life._on(home, spec, lease)
        except OSError as error:
            lease.release()
            raise StartFailed(f"cannot start {home.binary.argv[0]}: {error.strerror or error}") from error
        except BaseException:
            lease.release()
            raise

    @staticmethod
    async def _on(home: Home, spec: EngineSpec, lease: PortLease) -> Life:
        what = command(home.binary, spec, lease.port, os.environ)
        home.log.begin(secret=what.key)
        process = await launch(what, home.log)
        life = Life(home, lease, process, _client(lease.port, what.key))
        note = Note.of(process.pid, what.tag, lease.port)
        if note is not None:
            home.notes.write(home.engine_id, note)
        return life

    async def ready(self) -> Capabilities:
        """Wait until it serves. Raises `StartFailed` when it ends, takes too long or is not the one that answers."""
        limit_s = self._limit_s()
        looking = asyncio.create_task(self._look(), name=f"probe {self._home.engine_id}")
        try:
            await asyncio.wait({looking, self.process.exited}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if self.process.exited.done():
                raise await self._failed()
            if not looking.done():
                raise StartFailed(f"not ready after {limit_s:g} s (startup_timeout_s); last seen: {self._seen.detail}")
            return looking.result()
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self) -> Capabilities:
        """Probe with growing pauses, so that a small model is ready at once and a big one is left in peace."""
        pause_s = self._home.settings.first_probe_s
        while True:
            self._seen = await probe(self.client, self._home.spec.model)
            if self._seen.verdict == "ready":
                return self._seen.capabilities
            if self._seen.verdict == "stranger":
                raise StartFailed(self._seen.detail, another_port=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * _PROBE_GROWTH, self._home.settings.probe_interval_s)

    async def _failed(self) -> StartFailed:
        code = await self.process.exited
        lines = await self._last_words()
        return StartFailed(failed_start(code, lines), another_port=port_was_taken(lines))

    async def cause(self) -> str:
        """Why a process that had been ready ended, once it has."""
        code = await self.process.exited
        return died(code, await self._last_words())

    async def end(self, grace_s: float) -> None:
        """End it, by SIGKILL after `grace_s`, and wait until all of it is gone. Then its port rests."""
        try:
            await self.process.end(grace_s)
        finally:
            self.client.close()
            self._home.notes.erase(self._home.engine_id)
            self._lease.release()

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


def _client(port: int, key: str) -> Client:
    return Client(HOST, port, headers=[("authorization", f"Bearer {key}")], spare=True)
