"""Before an engine's process starts: its model's files are read and its memory is planned; what is unfit never starts.

One `Loader` serves all engines of a node. Files are read in threads of their own, and again only after they changed.
An engine that was let in claims its memory until it is ready or has failed, for until then the device does not show it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.node import Capabilities, Device
from worker.devices import aside
from worker.enginespec import EngineSpec
from worker.gguf import BadGguf
from worker.memory import NO_CORRECTION, Correction, MemoryPlan, Serving, gib, plan
from worker.modelfile import ModelFile, describe, shards
from worker.plans import Need
from worker.profile import contexts, partly_elsewhere, serving_of, side_files
from worker.room import Claim, MemoryCheck, Reserve, Room, default_check, no_reserve, out_of_use, room
from worker.taken import Corrections, taken_bytes

log = logging.getLogger(__name__)

READ_LIMIT_S: Final = 10.0
_NOT_FOUND: Final = "the model file {path} cannot be read: {error}"

ReadDevices = Callable[[], Awaitable[Sequence[Device]]]


class Unfit(Exception):
    """An engine must not be started. `reason` is for the operator; `load` is there if the files are sound."""

    def __init__(self, reason: str, load: Load | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.load = load


@dataclass(frozen=True, slots=True)
class Load:
    """What is about to be started: `spec` with its context decided, the model, and the memory that it will take."""

    spec: EngineSpec
    model: ModelFile
    serving: Serving
    plan: MemoryPlan
    correction: Correction = NO_CORRECTION
    side_models: tuple[ModelFile, ...] = ()

    @property
    def needed_bytes(self) -> int:
        """The plan, corrected by what earlier loads took."""
        return int(self.plan.total_bytes * self.correction.ratio)

    @property
    def need(self) -> Need:
        """The same, for placement: the buffers are there once on each device."""
        each = int(self.plan.compute_bytes * self.correction.ratio)
        return Need(self.needed_bytes - each, each, self.spec.context_tokens)

    def text(self) -> str:
        """The plan for people."""
        ratio = self.correction.ratio
        if abs(ratio - 1) < 0.01:
            return self.plan.text()
        return (
            f"{gib(self.needed_bytes)}: planned {self.plan.text()}, and earlier loads took {ratio:.2f} times their plan"
        )

    @property
    def capabilities(self) -> Capabilities:
        """What the files say."""
        can = (each for model in (self.model, *self.side_models) for each in model.capabilities)
        return Capabilities(
            context_tokens=self.spec.context_tokens,
            trained_context_tokens=self.model.context_tokens,
            parameters=self.model.parameters,
            size_bytes=self.model.tensor_bytes,
            architecture=self.model.architecture,
            quantisation=self.model.quantisation,
            chat_template=self.model.chat_template,
            can=tuple(dict.fromkeys(can)),
        )


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model needs, the best way to serve it first, and how it is looked at where that is not there."""

    check: MemoryCheck
    choices: tuple[Need, ...]


class Loader:
    """Owner of what is known of the node's model files and of the memory that loads have claimed.

    `check` unset: `refuse` on GPUs, `warn` on the CPU. `reserve` tells what is kept free of a device.
    """

    def __init__(
        self,
        folder: Path,
        devices: ReadDevices,
        *,
        check: MemoryCheck | None = None,
        reserve: Reserve = no_reserve,
    ) -> None:
        self._corrections = Corrections(folder)
        self._devices = devices
        self._check: MemoryCheck | None = check
        self._reserve = reserve
        self._claims: dict[str, Claim] = {}
        self._contexts: dict[str, int | None] = {}
        self._files: dict[Path, tuple[object, ModelFile]] = {}

    async def prepare(self, engine: str, spec: EngineSpec) -> Load:
        """Read the files, plan the memory and claim it for one start.

        Raises `Unfit` if a file is not one to start an engine with, a device is out of use, or the memory is not there
        and the check refuses; the reason has the figures.
        """
        model, sides = await self._models(spec)
        devices = await self._devices()
        verdict = self._verdict(spec, model)
        known = None if verdict == "off" else room(spec.devices, devices, self._others(engine), self._reserve)
        most = self._contexts.get(engine)
        load = chosen([self._planned(each, model, sides) for each in contexts(spec, model, most)], known)
        self._tell(engine, load)
        if verdict != "off" and (why := out_of_use(spec.devices, devices)) is not None:
            raise Unfit(f"not started: {why}", load)
        if known is not None and load.needed_bytes > known.usable_bytes:
            _short(engine, load, known, verdict)
        self._claims[engine] = Claim(spec.devices, load.needed_bytes)
        return load

    async def running(self, spec: EngineSpec) -> Load:
        """The plan of an engine that runs already, with its context decided: nothing is claimed. Raises `Unfit`."""
        model, sides = await self._models(spec)
        return self._planned(spec, model, sides)

    async def needs(self, spec: EngineSpec) -> Needs:
        """What an engine of `spec` will take of its kind of device, for each context that it may get, the best first.

        Raises `Unfit` if a file is not one to start an engine with.
        """
        model, sides = await self._models(spec)
        check = self._verdict(spec, model)
        if check == "off":
            return Needs(check, (Need(0),))
        loads = [self._planned(each, model, sides) for each in contexts(spec, model)]
        return Needs(check, tuple(load.need for load in loads))

    def expect(self, engine: str, context_tokens: int | None) -> None:
        """An engine was placed by a plan for this context: its starts are not to take more. None: they may."""
        self._contexts[engine] = context_tokens

    def release(self, engine: str) -> None:
        """The engine is ready, or failed: the devices show what it has. Safe to call twice."""
        self._claims.pop(engine, None)

    async def measured(self, load: Load, pid: int) -> int | None:
        """What the loaded process has of its devices, which corrects later plans; None if no device tells."""
        taken = taken_bytes(pid, load.spec.devices, await self._devices())
        if taken is not None:
            key = _key(load.spec, load.serving)
            self._corrections.remember(key, load.correction.after(load.plan.total_bytes, taken))
        return taken

    def _verdict(self, spec: EngineSpec, model: ModelFile) -> MemoryCheck:
        if self._check is not None:
            return self._check
        return "warn" if partly_elsewhere(spec, model) else default_check(spec.devices)

    def _others(self, engine: str) -> list[Claim]:
        return [claim for name, claim in self._claims.items() if name != engine]

    def _planned(self, spec: EngineSpec, model: ModelFile, sides: tuple[ModelFile, ...]) -> Load:
        serving = serving_of(spec, sum(side.tensor_bytes for side in sides))
        correction = self._corrections.of(_key(spec, serving))
        return Load(spec, model, serving, plan(model, serving), correction, sides)

    def _tell(self, engine: str, load: Load) -> None:
        spec = load.spec
        facts = {"event": "engine_planned", "engine": engine, "model": spec.model, "devices": ",".join(spec.devices)}
        facts |= {"architecture": load.model.architecture, "quantisation": load.model.quantisation}
        figures = {"slots": spec.slots, "context_tokens": spec.context_tokens, "memory_bytes": load.needed_bytes}
        log.info("engine_planned", extra=facts | figures | {"plan": load.text()})

    async def _models(self, spec: EngineSpec) -> tuple[ModelFile, tuple[ModelFile, ...]]:
        """The model's own file, and those that flags name beside it."""
        model = await self._model(spec.path)
        return model, tuple([await self._model(Path(path)) for path in side_files(spec)])

    async def _model(self, path: Path) -> ModelFile:
        try:
            async with asyncio.timeout(READ_LIMIT_S):
                return await aside(lambda: self._read(path), f"header-{path.name[:40]}")
        except TimeoutError as error:
            text = _NOT_FOUND.format(path=path, error=f"no answer within {READ_LIMIT_S:g} s")
            raise Unfit(text) from error
        except BadGguf as error:
            raise Unfit(f"the model file {path} cannot be used: {error}") from error
        except OSError as error:
            raise Unfit(_NOT_FOUND.format(path=error.filename or path, error=error.strerror or error)) from error

    def _read(self, path: Path) -> ModelFile:
        """In a thread. Reading twice at once is a waste and no harm."""
        stats = [shard.stat() for shard in shards(path)]
        state = [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in stats]
        known = self._files.get(path)
        if known is None or known[0] != state:
            self._files[path] = known = (state, describe(path))
        return known[1]


def chosen(loads: Sequence[Load], space: Room | None) -> Load:
    """The first that fits; the last, which takes least, if none does; the first if nobody knows the room."""
    if space is None:
        return loads[0]
    return next((load for load in loads if load.needed_bytes <= space.usable_bytes), loads[-1])


def _short(engine: str, load: Load, space: Room, verdict: MemoryCheck) -> None:
    text = f"needs {load.text()}; {space.text()}"
    if verdict == "refuse":
        advice = "Take fewer slots, a smaller context_tokens or a smaller quantisation, or set memory_check: warn"
        raise Unfit(f"not started, it would not fit: {text}. {advice}", load)
    log.warning("memory_short", extra={"event": "memory_short", "engine": engine, "plan": text})


def _key(spec: EngineSpec, serving: Serving) -> str:
    """By kind of device: what a load took on one GPU is what it will take on the next."""
    kinds = sorted({device.partition(":")[0] for device in spec.devices})
    return "|".join((str(spec.path), ",".join(kinds), repr(serving)))
