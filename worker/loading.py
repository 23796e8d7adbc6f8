"""Before an engine's process starts: its model's files are read and its memory is planned; what is unfit never starts.

One `Loader` serves all engines of a node. Files are read in threads of their own, and again only after they changed.
An engine that was let in claims its memory until it is ready or has failed, for until then the device does not show it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from schemas.node import Capabilities, Device
from worker.devices import aside
from worker.enginespec import EngineSpec, FlagValue
from worker.flags import flag_name
from worker.gguf import BadGguf
from worker.memory import BATCH_TOKENS, CACHE_BYTES_PER_VALUE, NO_CORRECTION, Correction, MemoryPlan, Serving, gib, plan
from worker.modelfile import ModelFile, describe, shards
from worker.room import Claim, MemoryCheck, Room, default_check, out_of_use, room
from worker.taken import Corrections, taken_bytes

log = logging.getLogger(__name__)

CONTEXT_DEFAULT_TOKENS: Final = 8192
"""What one request may use of a model that was made for more, unless the operator says otherwise."""
CONTEXT_LEAST_TOKENS: Final = 2048
"""The default is halved down to this while it does not fit."""
READ_LIMIT_S: Final = 10.0
_SIDE_FILES: Final = ("mmproj", "model-draft")
"""Flags that name a further model file, which is loaded beside the model's own."""
_ELSEWHERE: Final = frozenset(("n-cpu-moe", "cpu-moe", "override-tensor", "kv-offload", "no-kv-offload"))
_GPU_LAYERS: Final = ("n-gpu-layers", "gpu-layers")
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


class Loader:
    """Owner of what is known of the node's model files and of the memory that loads have claimed.

    `check` unset: `refuse` on GPUs, `warn` on the CPU. `reserved_bytes` are kept free of each device.
    """

    def __init__(
        self,
        folder: Path,
        devices: ReadDevices,
        *,
        check: MemoryCheck | None = None,
        reserved_bytes: int = 0,
    ) -> None:
        self._corrections = Corrections(folder)
        self._devices = devices
        self._check: MemoryCheck | None = check
        self._reserved_bytes = reserved_bytes
        self._claims: dict[str, Claim] = {}
        self._files: dict[Path, tuple[object, ModelFile]] = {}

    async def prepare(self, engine: str, spec: EngineSpec) -> Load:
        """Read the files, plan the memory and claim it for one start.

        Raises `Unfit` if a file is not one to start an engine with, a device is out of use, or the memory is not there
        and the check refuses; the reason has the figures.
        """
        model = await self._model(spec.path)
        sides = tuple([await self._model(Path(path)) for path in _side_files(spec)])
        devices = await self._devices()
        verdict = self._verdict(spec, model)
        known = None if verdict == "off" else room(spec.devices, devices, self._others(engine), self._reserved_bytes)
        load = chosen([self._planned(each, model, sides) for each in contexts(spec, model)], known)
        self._tell(engine, load)
        if verdict != "off" and (why := out_of_use(spec.devices, devices)) is not None:
            raise Unfit(f"not started: {why}", load)
        if known is not None and load.needed_bytes > known.usable_bytes:
            _short(engine, load, known, verdict)
        self._claims[engine] = Claim(spec.devices, load.needed_bytes)
        return load

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


def contexts(spec: EngineSpec, model: ModelFile) -> list[EngineSpec]:
    """The spec with each context that it may be started with, the best first."""
    if spec.context_tokens is not None or model.context_tokens is None:
        return [spec]
    tokens = min(model.context_tokens, CONTEXT_DEFAULT_TOKENS)
    choices = [tokens]
    while (tokens := tokens // 2) >= CONTEXT_LEAST_TOKENS:
        choices.append(tokens)
    return [replace(spec, context_tokens=each) for each in choices]


def chosen(loads: Sequence[Load], space: Room | None) -> Load:
    """The first that fits; the last, which takes least, if none does; the first if nobody knows the room."""
    if space is None:
        return loads[0]
    return next((load for load in loads if load.needed_bytes <= space.usable_bytes), loads[-1])


def partly_elsewhere(spec: EngineSpec, model: ModelFile) -> bool:
    """Whether flags leave a part of the model off its device: the plan is an upper bound then, and refuses nobody."""
    flags = {flag_name(name): value for name, value in spec.flags.items()}
    layers = (_count(flags.get(name), len(model.layers) + 1) for name in _GPU_LAYERS)
    return not _ELSEWHERE.isdisjoint(flags) or any(count <= len(model.layers) for count in layers)


def serving_of(spec: EngineSpec, side_bytes: int = 0) -> Serving:
    """The part of a spec that memory depends on."""
    flags = {flag_name(name): value for name, value in spec.flags.items()}
    return Serving(
        context_tokens=spec.context_tokens or 0,
        slots=spec.slots,
        cache_type_k=_cache_type(flags.get("cache-type-k")),
        cache_type_v=_cache_type(flags.get("cache-type-v")),
        batch_tokens=_count(flags.get("ubatch-size"), BATCH_TOKENS),
        projector_bytes=side_bytes,
    )


def _cache_type(value: FlagValue | None) -> str:
    """A type that is not known here is taken for the default, which is as large as any that saves memory."""
    return value if isinstance(value, str) and value in CACHE_BYTES_PER_VALUE else "f16"


def _count(value: FlagValue | None, default: int) -> int:
    return int(value) if isinstance(value, str) and value.isdecimal() else default


def _side_files(spec: EngineSpec) -> list[str]:
    flags = {flag_name(name): value for name, value in spec.flags.items()}
    found = (flags.get(name) for name in _SIDE_FILES)
    return [value for value in found if isinstance(value, str)]


def _short(engine: str, load: Load, space: Room, verdict: MemoryCheck) -> None:
    text = f"needs {load.text()}; {space.text()}"
    if verdict == "refuse":
        advice = "Take fewer slots, a smaller context_tokens or a smaller quantisation, or set memory_check: warn"
        raise Unfit(f"not started, it would not fit: {text}. {advice}", load)
    log.warning("memory_short", extra={"event": "memory_short", "engine": engine, "plan": text})


def _key(spec: EngineSpec, serving: Serving) -> str:
    return "|".join((str(spec.path), ",".join(spec.devices), repr(serving)))
