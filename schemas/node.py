"""A node's heartbeat: all that the fleet knows about one host, as it stands in the KV bucket."""

from __future__ import annotations

from decimal import Decimal
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

EngineState = Literal["stopped", "starting", "ready", "stopping", "crashed"]
ReasonCode = Literal[
    "loading",
    "adopting",
    "self-terminated",
    "killed",
    "out-of-memory",
    "failed-to-start",
    "start-timeout",
    "port-taken",
    "hang",
    "process-not-found",
    "model-unfit",
    "breaker",
    "idle",
    "evicted",
    "user-requested",
    "restart",
    "abuse",
    "shutdown",
]
"""Why an engine is in its state, for programs; the closed list. `killed`: by SIGKILL, and not by Puna.
`process-not-found`: its process was gone with nobody to tell how. `breaker`: it failed too often in a row. `abuse`: it
took more than its limits."""


class Wire(BaseModel):
    """Base of what travels: frozen, and deaf to fields of a newer peer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ProcessMemory(Wire):
    """What one process holds of a device's memory, by the pid that the driver knows."""

    pid: int
    memory_bytes: int


class DeviceMetrics(Wire):
    """Live figures of one device. `None`: the device does not tell."""

    memory_used_bytes: int | None = None
    utilization_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    """Counted since the driver was loaded; it may start anew."""
    clock_core_mhz: float | None = None
    clock_memory_mhz: float | None = None
    throttle: tuple[str, ...] | None = None
    """Why the clocks are held down now; empty: they are not. Being idle is no reason."""
    ecc_corrected_total: int | None = None
    """Since the driver was loaded."""
    ecc_uncorrected_total: int | None = None
    processes: tuple[ProcessMemory, ...] | None = None
    """Those that hold memory, the largest first, at most 32."""


class Device(Wire):
    """One GPU (`cuda:0`), a part of one (`cuda:0.1`), or the host's processors (`cpu:0`)."""

    device: str
    backend: str
    name: str
    uuid: str | None = None
    memory_total_bytes: int
    memory_free_bytes: int
    metrics: DeviceMetrics = DeviceMetrics()
    parent: str | None = None
    """The GPU that this is a part of (MIG): `cuda:0`."""
    pci: str | None = None
    """`0000:01:00.0`."""
    driver: str | None = None
    unified_memory: bool = False
    """Its memory is the host's: what it takes is missing at `cpu:0`."""
    reason: str | None = None
    """Why no engine can use it now; nothing may be placed on it then."""


class Capabilities(Wire):
    """What a served model is and can do: as its file says, and as its engine reports once that is ready."""

    context_tokens: int | None = None
    """What one request may use."""
    trained_context_tokens: int | None = None
    """What the model was made for."""
    parameters: int | None = None
    size_bytes: int | None = None
    """Of its tensors."""
    architecture: str | None = None
    quantisation: str | None = None
    """The type that most of its bytes have."""
    chat_template: bool | None = None
    can: tuple[str, ...] = ()
    """Of `chat`, `completion`, `embedding`, `rerank`, `vision`, `audio`; empty: not known."""


class EngineUsage(Wire):
    """What the processes of one engine take of the host. `None`: not told. Totals count since the engine started."""

    sampled_at: float
    """Unix seconds, by the node's clock."""
    source: Literal["cgroup", "processes"] = "processes"
    processes: int | None = None
    threads: int | None = None
    open_files: int | None = None
    cpu_percent: float | None = None
    """Of one processor, over the last interval."""
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    cpu_throttled_s: float | None = None
    """For how long its limit held it back."""
    memory_bytes: int | None = None
    """Resident, mapped model files included."""
    memory_anonymous_bytes: int | None = None
    """Without files: what the kernel cannot simply drop."""
    memory_proportional_bytes: int | None = None
    """Resident, each shared page counted by its share (PSS); told of small processes only, for it is costly."""
    swap_bytes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    read_ops: int | None = None
    write_ops: int | None = None
    scratch_bytes: int | None = None
    out_of_memory_kills: int | None = None
    bus_received_bytes: int = 0
    """Of requests over NATS that ended in it: their bodies."""
    bus_sent_bytes: int = 0
    """And their answers."""


class DiskUsage(Wire):
    """The file system under one of the node's folders."""

    place: str
    """`state`, `models`…"""
    total_bytes: int
    free_bytes: int
    """That the worker may use."""


class NodeUsage(Wire):
    """What a host has and uses, by all that runs there. `None`: not told."""

    sampled_at: float
    """Unix seconds, by the node's clock."""
    cpu_percent: float | None = None
    """Of all processors, 0 to 100."""
    cpu_count: int | None = None
    memory_total_bytes: int | None = None
    memory_available_bytes: int | None = None
    swap_used_bytes: int | None = None
    disks: tuple[DiskUsage, ...] = ()
    network_received_bytes: int | None = None
    """Since the host started, without the loopback."""
    network_sent_bytes: int | None = None
    network_received_bytes_per_s: float | None = None
    network_sent_bytes_per_s: float | None = None
    bus_received_bytes: int | None = None
    """Over NATS, since the worker started."""
    bus_sent_bytes: int | None = None


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
    reason_code: ReasonCode | None = None
    progress: float | None = None
    next_retry_at: float | None = None
    load_seconds: float | None = None
    capabilities: Capabilities = Capabilities()
    unfit: bool = False
    """With `crashed`: no process was started, for the model's file or the memory of the devices forbids it."""
    memory_planned_bytes: int | None = None
    """What it was expected to take of its devices before it was loaded."""
    memory_plan: str | None = None
    """The same by purpose, for people."""
    memory_measured_bytes: int | None = None
    """What it took once it was loaded."""
    pinned: bool = False
    """Never stopped to make room."""
    adopted: bool = False
    """Started by an earlier life of the worker and taken over as it ran."""
    breaker_open: bool = False
    """With `crashed`: it failed so often in a row that nobody waits for it until `next_retry_at`."""
    yielding: bool = False
    """Takes nothing new: its device is wanted by another model."""
    usage: EngineUsage | None = None


class Offer(Wire):
    """What it would take to start one more engine of a model on this node."""

    model: str
    cost: int | None = None
    """The priority that its pull would have: 1 to 3 there is room, 4 to 6 an idle engine must go first, 7 the files
    must be fetched, 8 and 9 on the CPU, with room and without. `None`: not now, and `reason` says why."""
    never: bool = False
    """With no cost: it cannot run here however long anybody waits, unless somebody changes a setting or a file."""
    reason: str | None = None
    """Why there is no cost; with one, why it is not the newest files that are served."""
    devices: tuple[str, ...] = ()
    """Where it would run."""
    evicts: tuple[str, ...] = ()
    """Engines that would be stopped for it."""
    needed_bytes: int | None = None
    free_bytes: int | None = None
    """On `devices`, after what is reserved."""
    load_seconds: float | None = None
    """How long it took the last time."""


class Share(Wire):
    """One kind of resource of a node (`cpu`, `mem`, `cuda.device`, `cuda.mem`): bytes for memory, else pieces."""

    total: Decimal
    reserved: Decimal = Decimal(0)
    """Kept for others than engines."""
    occupied: Decimal = Decimal(0)
    available: Decimal


class Pressure(Wire):
    """How much the node has on its hands."""

    active: int = 0
    waiting: int = 0
    completed_total: int = 0
    failed_total: int = 0
    service_seconds_median: float | None = None
    tokens_per_s: float = 0.0
    """That engines made for requests which ended in the last minute."""


OFFERS_LIMIT: Final = 256
"""Models that a heartbeat offers; further ones are served all the same."""


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
    offers: tuple[Offer, ...] = ()
    """Models on this node's disk, at most `OFFERS_LIMIT`."""
    shares: dict[str, Share] = Field(default_factory=dict[str, Share])
    """Resources by kind: `cpu`, `mem`, `cuda.device`, `cuda.mem`…"""
    usage: NodeUsage | None = None
    pressure: Pressure = Pressure()
    draining: bool = False
    http: str | None = None
    """Base URL of the worker's own HTTP, as seen on its host."""
    pid: int | None = None
    host: str = ""
    """As the host calls itself."""
    engine_program: str | None = None
    """What its engines are: `llama-server` or `embedded`; `None`: it has none."""
    engine_build: str | None = None
    """As that program tells it."""
    accelerators: tuple[str, ...] = ()
    """Kinds of devices in use: `cuda`, `cpu`…"""
