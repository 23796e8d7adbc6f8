"""What is measured, and how often."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Scope(BaseModel):
    """One kind of statistics."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    interval_s: float = Field(default=30.0, ge=0.1)


class StatisticsSettings(BaseModel):
    """Each kind has its own switch and interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: Scope = Scope()
    """Processors, memory, disks and network of the host."""
    engine: Scope = Scope()
    """All processes of an engine together."""
    process: Scope = Scope()
    """Each process of an engine by itself; for `/metrics`."""
