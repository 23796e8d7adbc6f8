"""Series that tell what is the case now: engines, devices, host and shares, out of the heartbeat and the statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.node import Device, Engine, EngineUsage, Heartbeat, NodeUsage, Share
from worker.enginelog import EngineLog
from worker.enginespec import EngineSpec
from worker.moving import Moved

STATES: Final = ("stopped", "starting", "ready", "stopping", "crashed")
MOVES: Final = ("current", "min", "max", "sum", "avg", "diff", "rate")


class Moves(Protocol):
    """Statistics, as far as metrics are concerned."""

    def moved(self) -> Mapping[tuple[str, str, str], Moved]:
        """By scope, subject and figure."""
        ...


class Sights(Collector):
    """Reads the heartbeat of now when somebody asks."""

    def __init__(self, beat: Callable[[], Heartbeat], moves: Moves | None = None) -> None:
        self._beat = beat
        self._moves = moves

    def collect(self) -> Iterable[Metric]:
        """The series of now."""
        beat = self._beat()
        yield from engine_series(beat.engines)
        yield from usage_series(beat.engines)
        yield from device_series(beat.devices)
        yield from share_series(beat.shares)
        if beat.usage is not None:
            yield from node_series(beat.usage)
        if self._moves is not None:
            yield moving_series(self._moves.moved())


class Logged(Protocol):
    """An engine, as far as its output is concerned."""

    engine_id: str
    log: EngineLog

    @property
    def spec(self) -> EngineSpec:
        """What it was asked to be."""
        ...


class Logs(Collector):
    """What became of the output of engines."""

    def __init__(self, engines: Callable[[], Iterable[Logged]]) -> None:
        self._engines = engines

    def collect(self) -> Iterable[Metric]:
        """The series of now."""
        here = list(self._engines())
        labels = [[each.engine_id, each.spec.model] for each in here]
        figures = {
            "engine_log_lost_bytes": ("Output that came too fast.", [each.log.lost_bytes for each in here]),
            "engine_log_withheld_lines": ("Could have held a request.", [each.log.withheld for each in here]),
        }
        for name, (text, values) in figures.items():
            yield counter(name, text, ["engine", "model"], zip(labels, values, strict=True))


def gauge(name: str, text: str, labels: list[str], rows: Iterable[tuple[list[str], float | int | None]]) -> Metric:
    """A series of what is known. What is `None` is left out."""
    family = GaugeMetricFamily(f"puna_worker_{name}", text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def counter(name: str, text: str, labels: list[str], rows: Iterable[tuple[list[str], float | int | None]]) -> Metric:
    """The same for what only grows; the name gets its `_total`."""
    family = CounterMetricFamily(f"puna_worker_{name}", text, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def engine_series(engines: Iterable[Engine]) -> Iterator[Metric]:
    """States of engines."""
    here = list(engines)
    counts = {state: sum(each.state == state for each in here) for state in STATES}
    yield gauge("engines", "Engines by state.", ["state"], (([state], count) for state, count in counts.items()))
    of = ["engine", "model"]
    flags: dict[str, tuple[str, Callable[[Engine], bool]]] = {
        "engine_ready": ("1: it takes requests.", lambda each: each.state == "ready"),
        "engine_breaker_open": ("1: given up for a while.", lambda each: each.breaker_open),
        "engine_adopted": ("1: taken over as it ran.", lambda each: each.adopted),
        "engine_pinned": ("1: never stopped to make room.", lambda each: each.pinned),
    }
    for name, (text, told) in flags.items():
        yield gauge(name, text, of, (([each.engine, each.model], int(told(each))) for each in here))
    yield gauge(
        "engine_memory_planned_bytes", "Of its devices.", of,
        (([each.engine, each.model], each.memory_planned_bytes) for each in here),
    )  # fmt: skip
    yield gauge(
        "engine_memory_measured_bytes", "Of its devices, once it was loaded.", of,
        (([each.engine, each.model], each.memory_measured_bytes) for each in here),
    )  # fmt: skip


_USAGE_GAUGES: Final = {
    "engine_processes": "processes",
    "engine_threads": "threads",
    "engine_open_files": "open_files",
    "engine_host_memory_bytes": "memory_bytes",
    "engine_host_memory_anonymous_bytes": "memory_anonymous_bytes",
    "engine_host_memory_proportional_bytes": "memory_proportional_bytes",
    "engine_swap_bytes": "swap_bytes",
    "engine_scratch_bytes": "scratch_bytes",
}
_USAGE_COUNTERS: Final = {
    "engine_cpu_user_seconds": "cpu_user_s",
    "engine_cpu_system_seconds": "cpu_system_s",
    "engine_cpu_throttled_seconds": "cpu_throttled_s",
    "engine_read_bytes": "read_bytes",
    "engine_written_bytes": "written_bytes",
    "engine_read_operations": "read_ops",
    "engine_write_operations": "write_ops",
    "engine_out_of_memory_kills": "out_of_memory_kills",
}


def usage_series(engines: Iterable[Engine]) -> Iterator[Metric]:
    """What engines take of the host."""
    known = [(each, each.usage) for each in engines if each.usage is not None]

    def rows(field: str) -> Iterator[tuple[list[str], float | int | None]]:
        return (([engine.engine, engine.model], _figure(usage, field)) for engine, usage in known)

    for name, field in _USAGE_GAUGES.items():
        yield gauge(name, f"`{field}` of all its processes.", ["engine", "model"], rows(field))
    for name, field in _USAGE_COUNTERS.items():
        yield counter(name, f"`{field}` of all its processes.", ["engine", "model"], rows(field))
    ratios = (
        ([each.engine, each.model], None if usage.cpu_percent is None else usage.cpu_percent / 100)
        for each, usage in known
    )
    yield gauge("engine_cpu_ratio", "Processor seconds a second, of the last interval.", ["engine", "model"], ratios)


def _figure(usage: EngineUsage, field: str) -> float | int | None:
    return getattr(usage, field)


def device_series(devices: Iterable[Device]) -> Iterator[Metric]:
    """Figures of devices."""
    here = list(devices)
    reads: dict[str, Callable[[Device], float | int | None]] = {
        "usable": lambda each: int(each.reason is None),
        "memory_total_bytes": lambda each: each.memory_total_bytes,
        "memory_free_bytes": lambda each: each.memory_free_bytes,
        "memory_used_bytes": lambda each: each.metrics.memory_used_bytes,
        "utilization_ratio": lambda each: _times(each.metrics.utilization_percent, 0.01),
        "temperature_celsius": lambda each: each.metrics.temperature_c,
        "power_watts": lambda each: each.metrics.power_w,
        "power_limit_watts": lambda each: each.metrics.power_limit_w,
        "clock_core_hertz": lambda each: _times(each.metrics.clock_core_mhz, 1e6),
        "clock_memory_hertz": lambda each: _times(each.metrics.clock_memory_mhz, 1e6),
        "throttled": lambda each: None if each.metrics.throttle is None else int(bool(each.metrics.throttle)),
    }
    counts: dict[str, Callable[[Device], float | int | None]] = {
        "energy_joules": lambda each: each.metrics.energy_j,
        "ecc_corrected_errors": lambda each: each.metrics.ecc_corrected_total,
        "ecc_uncorrected_errors": lambda each: each.metrics.ecc_uncorrected_total,
    }
    of = ["device", "backend"]
    for name, read in reads.items():
        yield gauge(f"device_{name}", "As its driver tells.", of, ((_device(each), read(each)) for each in here))
    for name, read in counts.items():
        yield counter(f"device_{name}", "As its driver counts.", of, ((_device(each), read(each)) for each in here))


def _device(device: Device) -> list[str]:
    return [device.device, device.backend]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def share_series(shares: Mapping[str, Share]) -> Iterator[Metric]:
    """Shares by slot: bytes for memory, else pieces."""
    rows = (
        ([slot, kind], float(getattr(share, kind)))
        for slot, share in shares.items()
        for kind in ("total", "reserved", "occupied", "available")
    )
    yield gauge("share", "Resources of the node: bytes of memory, else pieces.", ["slot", "kind"], rows)


def node_series(usage: NodeUsage) -> Iterator[Metric]:
    """What the host has and uses."""
    ratio = _times(usage.cpu_percent, 0.01)
    yield gauge("node_cpu_ratio", "Of all processors, of the last interval.", [], [([], ratio)])
    yield gauge("node_cpu_count", "Processors that the worker may use.", [], [([], usage.cpu_count)])
    memory = {"total": usage.memory_total_bytes, "available": usage.memory_available_bytes}
    yield gauge("node_memory_bytes", "Main memory.", ["kind"], (([kind], value) for kind, value in memory.items()))
    yield gauge("node_swap_used_bytes", "Swapped out.", [], [([], usage.swap_used_bytes)])
    disks = [([disk.place, kind], getattr(disk, f"{kind}_bytes")) for disk in usage.disks for kind in ("total", "free")]
    yield gauge("node_disk_bytes", "File systems under the node's folders.", ["place", "kind"], disks)
    network = {"received": usage.network_received_bytes, "sent": usage.network_sent_bytes}
    yield counter("node_network_bytes", "Without the loopback.", ["way"], (([way], n) for way, n in network.items()))
    bus = {"received": usage.bus_received_bytes, "sent": usage.bus_sent_bytes}
    yield counter("bus_bytes", "Over NATS.", ["way"], (([way], n) for way, n in bus.items()))


def moving_series(moved: Mapping[tuple[str, str, str], Moved]) -> Metric:
    """What became of figures of the node and its engines. Processes come and go, so they are not among them."""
    rows = (
        ([scope, subject, figure, name], getattr(each, name))
        for (scope, subject, figure), each in moved.items()
        if scope != "process"
        for name in MOVES
    )
    return gauge("statistics", "Moving statistics.", ["scope", "subject", "figure", "value"], rows)
