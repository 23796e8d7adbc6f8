"""What an engine is asked to be: frozen data that finder, launcher and run loop share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

FlagValue = str | bool | list[str]
GIB: Final = 1 << 30
COLD_START_ALLOWANCE_S: Final = 300.0
"""Given on top of the default time-out: slow disks, a driver's first kernels, a GPU that wakes."""
LOAD_ALLOWANCE_S_PER_GIB: Final = 20.0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One model to serve and how.

    `context_tokens` is what one request may use; the engine gets `context_tokens * slots`. `None`: decided before the
    start from the model's file and the memory that there is (`loading`); if the file does not tell either, by the
    engine. `threads=None` leaves one core free of engine threads.
    `flags` are llama-server's long flags: `True` is the bare flag, `False` its `--no-` form, a list repeats it.
    """

    model: str
    path: Path
    context_tokens: int | None = None
    slots: int = 1
    devices: tuple[str, ...] = ("cpu:0",)
    flags: Mapping[str, FlagValue] = field(default_factory=dict[str, FlagValue])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class EngineBinary:
    """A program that was proved to run here. `devices` are the GPUs that it sees (`cuda:0`), none on a CPU build."""

    kind: Literal["llama-server", "embedded"]
    argv: tuple[str, ...]
    version: str
    devices: tuple[str, ...] = ()


class EngineSettings(BaseModel):
    """How engines are found, started, watched and stopped. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    path: Path | None = None
    """The llama-server to use; unset: looked for."""
    startup_timeout_s: PositiveFloat = Field(
        default=30.0,
        validation_alias=AliasChoices("startup_timeout_s", "llama_server_startup_timeout_s"),
    )
    """Longest load. The default gets 300 s and 20 s a GiB of model file on top; a value of yours is taken as it is."""
    first_probe_s: PositiveFloat = 0.02
    probe_interval_s: PositiveFloat = 0.5
    """Longest pause between two probes of a loading engine; the first pauses are shorter."""
    stop_grace_s: PositiveFloat = 10.0
    """From SIGTERM to SIGKILL."""
    restart_delay_s: PositiveFloat = 0.5
    """Pause before the first restart after a crash; doubles with each failure in a row, plus jitter."""
    restart_delay_cap_s: PositiveFloat = 60.0
    stable_after_s: PositiveFloat = 60.0
    """An engine that was ready this long starts again with the first pause."""
    give_up_waiting_after: PositiveInt = 3
    """Failed starts in a row after which waiting requests are refused at once. The restarts go on."""
    port_range: tuple[int, int] = (30000, 31000)
    """First and last port for engines on this host."""
    port_cooldown_s: float = Field(default=60.0, ge=0)
    """A port that an engine had rests this long, so that a late packet meets nobody."""
    log_ring_bytes: int = Field(default=10 << 20, ge=1 << 16)
    """Output kept of each engine: here, and again in the process that minds it."""
    orphan_grace_s: float = Field(
        default=30.0, ge=0, validation_alias=AliasChoices("orphan_grace_s", "engine_orphan_grace_s")
    )
    """How long an engine outlives a worker that died, so that the next one takes it over as it runs; 0: not at all."""
    hang_timeout_s: PositiveFloat = 60.0
    """A busy engine that takes no processor time at all for this long is killed and started again."""
    watch_interval_s: PositiveFloat = 0.5
    """Pause between two looks at a running engine's process."""
    health_interval_s: PositiveFloat = 1.0
    """Pause between two questions to an idle engine, and how long it may take for an answer; three without one: it
    hangs."""

    @model_validator(mode="after")
    def _range_in_order(self) -> EngineSettings:
        first, last = self.port_range
        if not 1 <= first <= last <= 65535:
            raise ValueError(f"port_range {first}-{last}: give the first and the last port, between 1 and 65535")
        return self

    def startup_limit_s(self, file_bytes: int) -> float:
        """How long a model of this size may load."""
        if "startup_timeout_s" in self.model_fields_set:
            return self.startup_timeout_s
        return self.startup_timeout_s + COLD_START_ALLOWANCE_S + LOAD_ALLOWANCE_S_PER_GIB * file_bytes / GIB
