"""A node's heartbeat: all that the fleet knows about one host, as it stands in the KV bucket."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

EngineState = Literal["stopped", "starting", "ready", "stopping", "crashed"]


class Wire(BaseModel):
    """Base of what travels: frozen, and deaf to fields of a newer peer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class DeviceMetrics(Wire):
    """Live figures of one device. `None`: the device does not tell."""

    memory_used_bytes: int | None = None
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


class Device(Wire):
    """One GPU (`cuda:0`) or the host's processors (`cpu:0`)."""

    device: str
    backend: str
    name: str
    uuid: str | None = None
    memory_total_bytes: int
    memory_free_bytes: int
    metrics: DeviceMetrics = DeviceMetrics()


class Capabilities(Wire):
    """What a served model can do, as its engine reports."""

    context_tokens: int | None = None
    parameters: int | None = None
    size_bytes: int | None = None


class Engine(Wire):
    """One `llama-server` process that the worker owns."""

    engine: str
    model: str
    devices: tuple[str, ...]
    state: EngineState
    slots_total: int
    slots_busy: int = 0
    pid: int | None = None
    since: float
    """Unix seconds at which the state was entered, by the node's clock: for people, never compared."""
    reason: str | None = None
    progress: float | None = None
    next_retry_at: float | None = None
    load_seconds: float | None = None
    capabilities: Capabilities = Capabilities()


class Pressure(Wire):
    """How much the node has on its hands."""

    active: int = 0
    waiting: int = 0
    completed_total: int = 0
    failed_total: int = 0
    service_seconds_median: float | None = None


class Heartbeat(Wire):
    """The value under `<node>` in the nodes bucket."""

    node: str
    boot_id: str
    sequence: int
    version: str
    started_at: float
    architecture: str = ""
    region: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    engines: tuple[Engine, ...] = ()
    pressure: Pressure = Pressure()
    draining: bool = False
    http: str | None = None
    """Base URL of the worker's own HTTP, as seen on its host."""
    pid: int | None = None
