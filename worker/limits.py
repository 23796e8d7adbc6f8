"""What an engine may take of its host, and how that is enforced: by its cgroup where that is delegated, else by
rlimits and niceness, which can say less. Plain data and decisions.

Facts behind it: a limit on address space (RLIMIT_AS) ends engines at once, for they map whole model files and a GPU's
driver reserves terabytes of it. RLIMIT_DATA counts private memory alone: the cache and buffers of a CPU engine, no
mapped file. Drivers of GPUs make private mappings of the device's size too, so their engines get none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from schemas.node import EngineUsage
from worker.cgroup import CgroupLimits, Ground, survey

ABUSE_SHARE: Final = 1.1
"""What is not enforced by the kernel is measured, late and roughly: so much of a limit is let pass."""
NEAR_SHARE: Final = 0.9


class EngineLimits(BaseModel):
    """Of each engine. Unset: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu_cores: float | None = Field(default=None, ge=0.01, le=4096)
    """Processor seconds a second. Needs a cgroup."""
    memory_bytes: int | None = Field(default=None, ge=16 << 20)
    """Main memory. With a cgroup it counts mapped model files, which the kernel drops and reads again when they do not
    fit; without one, only what a CPU engine allocates."""
    swap_bytes: int | None = Field(default=None, ge=0)
    """Beside `memory_bytes`. Needs a cgroup."""
    read_bytes_per_s: int | None = Field(default=None, ge=4096)
    """From each disk that holds models or state. Needs a cgroup."""
    write_bytes_per_s: int | None = Field(default=None, ge=4096)
    """To each of those disks. Needs a cgroup."""
    nice: int | None = Field(default=None, ge=0, le=19)
    """Niceness of its processes."""
    open_files: int | None = Field(default=None, ge=64)
    scratch_bytes: int | None = Field(default=None, ge=1 << 20)
    """Of its scratch folder: told at nine tenths, the engine is started anew at a tenth over it."""

    @property
    def cgroup(self) -> CgroupLimits:
        """The part that a cgroup enforces."""
        return CgroupLimits(
            self.cpu_cores, self.memory_bytes, self.swap_bytes, self.read_bytes_per_s, self.write_bytes_per_s
        )


class LimitSettings(EngineLimits):
    """Of each engine whose model says nothing else. Unset: no limit."""

    cgroup_v2: bool = True
    """Give each engine a cgroup where the system has delegated ours to us."""
    core_dumps: bool = False
    """Whether an engine that crashes may leave an image of its memory, with prompts in it."""
    end_abusers: bool = True
    """End and start anew an engine that is a tenth over a limit that the kernel does not enforce."""
    scratch_dir: Path | None = None
    """Where engines have their scratch folders; unset: `scratch` in the state folder. A fast disk is a good place."""
    scratch_check_s: float = Field(default=30.0, ge=0.1)
    """Between two looks at the size of scratch folders."""

    def of(self, own: EngineLimits | None) -> EngineLimits:
        """The limits of a model that has set `own`; what it has not set is as here."""
        names = EngineLimits.model_fields
        below = {name: getattr(self, name) for name in names}
        above = {name: getattr(own, name) for name in own.model_fields_set} if own is not None else {}
        return EngineLimits(**(below | above))


_NO_LIMITS: Final = LimitSettings()


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What is done to an engine's process before its program starts, and what cannot be enforced."""

    rlimits: Mapping[str, int]
    """By the system's names, in small letters and without `RLIMIT_`."""
    nice: int
    cgroup: CgroupLimits | None
    """`None`: there is no cgroup."""
    not_enforced: tuple[str, ...] = ()
    """Settings that the kernel does not enforce here."""


def enforcement(limits: EngineLimits, devices: Sequence[str], ground: Ground, *, core_dumps: bool) -> Enforcement:
    """How `limits` are enforced for an engine on `devices`."""
    rlimits = {} if core_dumps else {"core": 0}
    if limits.open_files is not None:
        rlimits["nofile"] = limits.open_files
    if limits.memory_bytes is not None and _by_rlimit(devices, ground):
        rlimits["data"] = limits.memory_bytes
    missing = tuple(_missing(limits, devices, ground))
    return Enforcement(rlimits, limits.nice or 0, limits.cgroup if ground.delegated else None, missing)


def _by_rlimit(devices: Sequence[str], ground: Ground) -> bool:
    """Whether memory is limited by RLIMIT_DATA."""
    return "memory" not in ground.controllers and all(device.startswith("cpu") for device in devices)


def _missing(limits: EngineLimits, devices: Sequence[str], ground: Ground) -> list[str]:
    needs = {
        "cpu_cores": "cpu", "memory_bytes": "memory", "swap_bytes": "memory",
        "read_bytes_per_s": "io", "write_bytes_per_s": "io",
    }  # fmt: skip
    kept = {"memory_bytes"} if _by_rlimit(devices, ground) else set[str]()
    return [
        name
        for name, controller in needs.items()
        if getattr(limits, name) is not None and controller not in ground.controllers and name not in kept
    ]


def excess(usage: EngineUsage, limits: EngineLimits) -> str | None:
    """Why an engine has to go: what it takes is over a limit by more than a tenth, and no kernel sees to that. `None`:
    it has not."""
    memory = limits.memory_bytes if usage.source == "processes" else None
    scratch = limits.scratch_bytes
    # files that are mapped are the kernel's to drop, so they are nobody's abuse
    held = (usage.memory_anonymous_bytes or 0) + (usage.swap_bytes or 0)
    if memory is not None and held > memory * ABUSE_SHARE:
        return f"it holds {held} bytes of memory; {memory} are allowed (limits.memory_bytes)"
    if scratch is not None and (usage.scratch_bytes or 0) > scratch * ABUSE_SHARE:
        return f"its scratch folder has {usage.scratch_bytes} bytes; {scratch} are allowed (limits.scratch_bytes)"
    return None


def notices(
    ground: Ground | None = None, limits: LimitSettings = _NO_LIMITS, models: Sequence[EngineLimits] = ()
) -> list[str]:
    """Sentences for a person: what of the limits cannot be enforced on this host, and what to do. `ground`: that of a
    running worker; without it, what this process would find."""
    ground = survey() if ground is None else ground
    out: list[str] = []
    if limits.cgroup_v2 and not ground.delegated:
        out.append(
            f"engines have no cgroup of their own: {ground.reason}. Limits are rlimits and niceness only, and an "
            "engine killed for lack of memory may look like a crash"
        )
    asked = {name for each in (limits, *models) for name in _missing(each, ("gpu:0",), ground)}
    if asked:
        names = ", ".join(f"limits.{name}" for name in sorted(asked))
        out.append(f"{names}: not enforced here, or only in part, for want of a cgroup with that controller")
    return out
