"""Which devices a model's engine gets, when nobody said."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.node import Device
from worker.accelerators import Accelerator, environment
from worker.enginespec import EngineSpec
from worker.settings import ModelSettings, WorkerSettings

CPU = ("cpu:0",)


def usable_gpus(devices: Sequence[Device]) -> tuple[str, ...]:
    """The GPUs on which something may be placed. A device with a reason is there to be seen only."""
    return tuple(each.device for each in devices if each.backend != "cpu" and each.reason is None)


def spec_of(
    model: ModelSettings, settings: WorkerSettings, devices: Sequence[Device], accelerators: Sequence[Accelerator]
) -> EngineSpec:
    """What the engine of a model is asked to be: on the devices of its settings, else on all GPUs, else on the CPU."""
    chosen = tuple(model.devices) or usable_gpus(devices) or CPU
    return EngineSpec(
        model=model.model,
        path=model.path,
        context_tokens=model.context_tokens,
        slots=model.slots or settings.slots,
        devices=chosen,
        flags=model.flags,
        environment=environment(accelerators, chosen) | model.environment,
        threads=model.threads,
    )
