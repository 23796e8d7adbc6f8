"""Which devices a model's engine may have, and what the engine is asked to be once it is known which it gets."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.node import Device
from worker.accelerators import Accelerator, environment
from worker.enginespec import EngineSpec
from worker.plans import is_cpu
from worker.settings import ModelSettings, WorkerSettings

CPU = ("cpu:0",)


def usable_gpus(devices: Sequence[Device]) -> tuple[str, ...]:
    """The GPUs on which something may be placed. A device with a reason is there to be seen only."""
    return tuple(each.device for each in devices if each.backend != "cpu" and each.reason is None)


def gpus_for(model: ModelSettings, devices: Sequence[Device], *, engine_sees_gpus: bool) -> tuple[str, ...]:
    """The GPUs that a model's engine may have, in the order of its settings, else of the devices.

    None where the CPU is this node's best device: there is no GPU, or the engine program was built without them all.
    A GPU that has failed counts as long as the program is one for GPUs: its models do not go to the CPU in silence.
    """
    if model.devices:
        return tuple(each for each in model.devices if not is_cpu(each))
    usable = usable_gpus(devices)
    if usable or not engine_sees_gpus:
        return usable
    return tuple(each.device for each in devices if each.backend != "cpu")


def cpus_for(model: ModelSettings, gpus: Sequence[str]) -> tuple[str, ...]:
    """The CPU, if the model's engine may have it: named in the settings, allowed there, or all that there is."""
    if model.devices:
        named = tuple(each for each in model.devices if is_cpu(each))
        return named or (CPU if model.cpu_fallback else ())
    return CPU if not gpus or model.cpu_fallback else ()


def spec_of(
    model: ModelSettings,
    settings: WorkerSettings,
    accelerators: Sequence[Accelerator],
    devices: tuple[str, ...],
    context_tokens: int | None = None,
) -> EngineSpec:
    """What an engine of a model on `devices` is asked to be. `context_tokens` counts where the settings have none."""
    return EngineSpec(
        model=model.model,
        path=model.path,
        context_tokens=model.context_tokens or context_tokens,
        slots=model.slots or settings.slots,
        devices=devices,
        flags=model.flags,
        environment=environment(accelerators, devices) | model.environment,
        threads=model.threads,
    )
