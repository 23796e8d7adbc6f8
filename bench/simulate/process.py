"""A simulated engine's process: what the worker holds instead of a child. It loads, serves, crashes as told."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.simulate.devices import PIN_VARIABLE, Gpus, OutOfMemory
from bench.simulate.engine import HttpEngine, Orders
from bench.simulate.journal import Journal
from bench.simulate.requests import Slots
from bench.simulate.settings import Behaviour
from worker.accelerators import Accelerator, AcceleratorSettings
from worker.enginelog import EngineLog
from worker.launch import Command
from worker.process import MinderTerms
from worker.remains import Remains

_PIDS: Final = itertools.count(5_000_000)
"""Above every pid that Linux gives (2²² at most): whatever looks for such a process finds none."""
_STDERR: Final = 2


class SimulatedProcess:
    """Runs from `start` on; `exited` resolves with its exit code (negative: a signal)."""

    def __init__(
        self, orders: Orders, devices: Sequence[str], like: Behaviour, dice: random.Random, *, gpus: Gpus, slots: Slots
    ) -> None:
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.output_ended = asyncio.Event()
        self.pid = next(_PIDS)
        self.remains = Remains(self.pid, 0.0, "")
        self.minder_pid = 0
        self.minder_lost = False
        self.socket_path = Path()
        self._devices = devices
        self._like = like
        self._dice = dice
        self._gpus = gpus
        self._http = HttpEngine(orders, slots)
        self._slots = slots
        self._life: asyncio.Task[None] | None = None

    def start(self, log: EngineLog, journal: Journal, node: str) -> None:
        """It runs; nothing of it raises here, as with a process that has just been started."""
        self._log, self._journal, self._node = log, journal, node
        self._slots.on_fault = self._fault
        self._tell("load", devices=list(self._devices))
        self._life = asyncio.get_running_loop().create_task(self._load(), name=f"simulated engine {self.pid}")

    async def _load(self) -> None:
        try:
            await self._http.start()
            seconds = self._like.load.draw(self._dice, self._like.file_bytes)
            doomed = self._dice.random() < self._like.crash_at_load
            self._gpus.take(self.pid, self._devices, int(self._like.file_bytes * self._like.memory_factor))
        except OSError as error:
            await self._over(1, f"E srv init: couldn't bind HTTP server socket: {error}")
        except OutOfMemory as error:
            await self._over(
                1, f"E ggml_backend_cuda_buffer_type_alloc_buffer: {error}: cudaMalloc failed: out of memory"
            )
        else:
            await asyncio.sleep(seconds)
            if doomed:
                await self._over(-signal.SIGSEGV, "loading failed as it was told to")
            else:
                self._http.ready = True
                self._tell("ready")

    def _fault(self, what: str) -> None:
        if self.exited.done():
            return
        self._tell(what)
        if what == "hang":
            self._http.hang()
        else:
            self._life = asyncio.get_running_loop().create_task(
                self._over(-signal.SIGSEGV, "crashed as it was told to")
            )

    def mark_requests(self) -> None:
        """Its output quotes nothing."""

    def leave(self) -> None:
        """Nothing of it outlives this process."""

    async def end(self, grace_s: float) -> int:
        """SIGTERM; a hung one ends by SIGKILL after `grace_s`. Returns when nothing of it is left."""
        if not self.exited.done():
            if self._life is not None:
                self._life.cancel()
            stop_s = grace_s if self._http.hung else min(self._like.stop.draw(self._dice), grace_s)
            await asyncio.sleep(stop_s)
            await self._over(-signal.SIGKILL if self._http.hung else -signal.SIGTERM, "")
        return await self.exited

    async def _over(self, code: int, words: str) -> None:
        if self.exited.done():
            return
        if words:
            self._log.feed(_STDERR, f"{words}\n".encode())
        self._gpus.release(self.pid)
        self._tell("gone", code=code)
        self.output_ended.set()
        self.exited.set_result(code)
        await self._http.stop()

    def _tell(self, event: str, **more: object) -> None:
        self._journal.tell(event, node=self._node, pid=self.pid, model=self._slots.model, **more)


class Host:
    """One node's simulated devices and the engines on them (`worker.backend.Backend`)."""

    def __init__(self, node: str, gpus: Gpus, models: dict[str, Behaviour], seed: int, journal: Journal) -> None:
        self._node = node
        self._gpus = gpus
        self._models = models
        self._seed = seed
        self._journal = journal
        self._starts = itertools.count()

    def discover(self, engine: Sequence[str], choice: AcceleratorSettings) -> Sequence[Accelerator]:
        """The simulated GPUs alone."""
        return [self._gpus]

    async def launch(self, what: Command, log: EngineLog, terms: MinderTerms | None = None) -> SimulatedProcess:
        """Start one. Raises `OSError` for a model that the simulation does not know."""
        orders = Orders.of(tuple(what.argv), what.environment)
        like = self._models.get(orders.model)
        if like is None:
            raise FileNotFoundError(2, f"the simulation knows no model {orders.model}")
        devices = [name for name in what.environment.get(PIN_VARIABLE, "").split(",") if name] or [self._gpus.names[0]]
        dice = random.Random(f"{self._seed}/{self._node}/{orders.model}/{next(self._starts)}")
        slots = Slots(orders.model, orders.slots, like, dice, self._journal, node=self._node)
        process = SimulatedProcess(orders, devices, like, dice, gpus=self._gpus, slots=slots)
        process.start(log, self._journal, self._node)
        return process
