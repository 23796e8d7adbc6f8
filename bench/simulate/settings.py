"""What a simulation is told: a small YAML file, and the command line over it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.simulate.times import GIB, Duration, Times


class Group(BaseModel):
    """Base of all groups: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Behaviour(Group):
    """How the engines of one model behave."""

    gib: float = Field(default=1.0, gt=0)
    """Size of the model's file, which is what an engine takes of its devices' memory, times `memory_factor`."""
    memory_factor: float = Field(default=1.0, gt=0)
    slots: int | None = Field(default=None, ge=1, le=256)
    """Unset: the simulation's."""
    profile: dict[str, Any] = Field(default_factory=dict[str, Any])
    """More of the model's settings in the worker, in the words of docs/configuration.md: `preload`, `pinned`…"""
    load: Duration = Times("fixed", 0.2)
    """From the start of the process to the first good answer of `/health`."""
    stop: Duration = Times("fixed", 0.02)
    """From SIGTERM to the end."""
    prompt: Duration = Times("fixed", 0.0)
    """From a request to its first token."""
    tokens_per_s: float = Field(default=1000.0, gt=0)
    """Of one slot. An answer takes `max_tokens ÷ tokens_per_s`, after the prompt."""
    answer: Duration = Times("fixed", 0.4)
    """How long an answer takes whose request has no `max_tokens`."""
    chunk_s: float = Field(default=0.25, gt=0)
    """Tokens of this long go out together."""
    crash: float = Field(default=0.0, ge=0, le=1)
    """Share of requests in whose middle the engine's process ends by a signal."""
    hang: float = Field(default=0.0, ge=0, le=1)
    """Share of requests in whose middle the engine stops to answer anything, for ever."""
    crash_at_load: float = Field(default=0.0, ge=0, le=1)
    """Share of starts that end before the engine is ready."""

    @property
    def file_bytes(self) -> int:
        """Size of the model's file."""
        return int(self.gib * GIB)


class Simulation(Group):
    """N nodes with D devices each, in one process."""

    nodes: int = Field(default=1, ge=1, le=1000)
    first: int = Field(default=0, ge=0)
    """Number of the first node: processes of one fleet count on."""
    devices: int = Field(default=1, ge=1, le=64)
    """Of each node; `cuda:0` and so on."""
    device_gib: float = Field(default=24.0, gt=0)
    slots: int = Field(default=4, ge=1, le=256)
    """Of each engine, unless its model says otherwise."""
    seed: int = 1
    defaults: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Of every model, where its own entry is silent."""
    models: dict[str, Behaviour] = Field(default_factory=dict[str, Behaviour])
    worker: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Settings of every worker, in the words of docs/configuration.md."""

    @field_validator("models")
    @classmethod
    def _has_models(cls, value: dict[str, Behaviour]) -> dict[str, Behaviour]:
        if not value:
            raise ValueError("name at least one model")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, each in self.models.items():
            if each.gib * each.memory_factor > self.device_gib * self.devices:
                raise ValueError(f"model {name} of {each.gib:g} GiB fits no node")
        return self

    def node_name(self, number: int) -> str:
        """`sim-7`."""
        return f"sim-{number}"


def simulation(config: Path | None, given: dict[str, Any]) -> Simulation:
    """The file with what was `given` over it; `None` is not given. Raises `ValueError` and `OSError`."""
    loaded: Any = (yaml.safe_load(config.read_text(encoding="utf-8")) if config else None) or {}
    if not isinstance(loaded, dict):
        raise ValueError(f"{config}: a mapping is expected")
    told = cast(dict[str, Any], loaded) | {key: value for key, value in given.items() if value is not None}
    models = cast(dict[str, dict[str, Any] | None], told.get("models") or {})
    defaults = cast(dict[str, Any], told.get("defaults") or {})
    return Simulation.model_validate(told | {"models": {name: defaults | (own or {}) for name, own in models.items()}})
