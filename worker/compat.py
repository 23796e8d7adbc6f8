"""The same figures under the names that dashboards made for Backend.AI's agents know (`compat_metrics: true`).

An agent is a node, a kernel is an engine, a session is its model, a remote call is a control verb. Who owns an engine
is not known: `undefined`, as there. Nothing is counted twice: our own series are read and named anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.node import Device, Engine, Heartbeat
from worker.happenings import Happenings
from worker.limits import EngineLimits
from worker.taken import taken_bytes
from worker.usage import ProcessUsage

UNDEFINED: Final = "undefined"
PROCESSES_LIMIT: Final = 256
Figure = tuple[str, float | int | None, float | int | None]
"""Name, current, capacity."""


class Compat(Collector):
    """Reads everything when somebody asks."""

    def __init__(
        self,
        happenings: Happenings,
        beat: Callable[[], Heartbeat],
        limits_of: Callable[[str], EngineLimits],
        processes: Callable[[], Iterable[ProcessUsage]] = tuple,
    ) -> None:
        self._happenings = happenings
        self._beat = beat
        self._limits_of = limits_of
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        """The series of now."""
        beat = self._beat()
        yield from self._agent(beat)
        yield from self._remote_calls()
        yield from self._lifecycle(beat.node)
        yield from self._statistics(beat.node)
        yield self._containers(beat)
        yield _devices(beat)
        yield self._process_series(beat.node)

    def _agent(self, beat: Heartbeat) -> Iterator[Metric]:
        usage, gpus = beat.usage, [each for each in beat.devices if each.backend != "cpu"]
        total, free = (usage.memory_total_bytes, usage.memory_available_bytes) if usage else (None, None)
        busy = [each.metrics.utilization_percent for each in gpus if each.metrics.utilization_percent is not None]
        yield from renamed(self._happenings.heartbeat_at, "backendai_agent_heartbeat", {}, agent_id=beat.node)
        values = {
            "backendai_agent_cpu_usage": usage.cpu_percent if usage else None,
            "backendai_agent_mem_usage": None if total is None or free is None else total - free,
            "backendai_agent_gpu_usage": sum(busy) / len(busy) if busy else None,
            "backendai_kernel_count": sum(each.pid is not None for each in beat.engines),
        }
        for name, value in values.items():
            family = GaugeMetricFamily(name, "As Backend.AI's agent tells it.", labels=["agent_id"])
            if value is not None:
                family.add_metric([beat.node], value)
            yield family

    def _remote_calls(self) -> Iterator[Metric]:
        ours = self._happenings
        names = {"verb": "method", "code": "exception"}
        yield from renamed(ours.orders, "backendai_rpc_requests", names)
        yield from renamed(ours.order_failures, "backendai_rpc_failure_requests", names)
        yield from renamed(ours.order_seconds, "backendai_rpc_request_duration_seconds", names)

    def _lifecycle(self, node: str) -> Iterator[Metric]:
        ours, stem = self._happenings, "backendai_sync_container_lifecycle"
        yield from renamed(ours.syncs, f"{stem}_trigger_count", {}, agent_id=node)
        yield from renamed(ours.synced, f"{stem}_success_count", {}, agent_id=node)
        yield from renamed(ours.sync_failures, f"{stem}_failure_count", {"code": "exception"}, agent_id=node)

    def _statistics(self, node: str) -> Iterator[Metric]:
        ours, stem = self._happenings, "backendai_stat_task"
        names = {"scope": "stat_scope", "code": "exception"}
        yield from renamed(ours.readings, f"{stem}_trigger_count", names, _SCOPES, agent_id=node)
        yield from renamed(ours.readings_done, f"{stem}_success_count", names, _SCOPES, agent_id=node)
        yield from renamed(ours.reading_failures, f"{stem}_failure_count", names, _SCOPES, agent_id=node)

    def _containers(self, beat: Heartbeat) -> Metric:
        labels = ["agent_id", "kernel_id", "session_id", "user_id", "project_id"]
        family = _family("backendai_container_utilization", "container_metric_name", labels)
        for engine in beat.engines:
            names = [beat.node, engine.engine, engine.model, UNDEFINED, UNDEFINED]
            for figure in container_figures(engine, beat, self._limits_of(engine.model)):
                _add(family, figure, names)
        return family

    def _process_series(self, node: str) -> Metric:
        family = _family("backendai_process_utilization", "process_metric_name", ["agent_id", "kernel_id", "pid"])
        for _, each in zip(range(PROCESSES_LIMIT), self._processes(), strict=False):
            found = each.figures
            names = [node, each.engine, str(found.pid)]
            rate = None if each.cpu_percent is None else each.cpu_percent * 10
            cpu_ms = None if found.cpu_s is None else found.cpu_s * 1000
            figures = [("cpu_util", rate, 1000), ("cpu_used", cpu_ms, None), ("mem", found.memory_bytes, None)]
            figures += [("io_read", found.read_bytes, None), ("io_write", found.written_bytes, None)]
            for figure in figures:
                _add(family, figure, names)
        return family


_SCOPES: Final = {"engine": "container"}


def container_figures(engine: Engine, beat: Heartbeat, limits: EngineLimits) -> Iterator[Figure]:
    """What an engine takes, in the units of the references: processor milliseconds (a second), bytes, percent."""
    usage, host = engine.usage, beat.usage.memory_total_bytes if beat.usage else None
    if usage is not None:
        cpu_s = None
        if usage.cpu_user_s is not None and usage.cpu_system_s is not None:
            cpu_s = usage.cpu_user_s + usage.cpu_system_s
        yield "cpu_util", None if usage.cpu_percent is None else usage.cpu_percent * 10, 1000
        yield "cpu_used", None if cpu_s is None else cpu_s * 1000, None
        yield "mem", usage.memory_bytes, limits.memory_bytes or host
        yield "net_rx", usage.bus_received_bytes, None
        yield "net_tx", usage.bus_sent_bytes, None
        yield "io_read", usage.read_bytes, None
        yield "io_write", usage.written_bytes, None
        yield "io_scratch_size", usage.scratch_bytes, limits.scratch_bytes
    own = [each for each in beat.devices if each.device in engine.devices and each.backend != "cpu"]
    if own and engine.pid is not None:
        backend = own[0].backend
        yield f"{backend}_mem", memory_held_bytes(engine, own), sum(each.memory_total_bytes for each in own)
        busy = [each.metrics.utilization_percent for each in own if each.metrics.utilization_percent is not None]
        yield f"{backend}_util", sum(busy) if busy else None, 100 * len(own)


def memory_held_bytes(engine: Engine, devices: Iterable[Device]) -> int | None:
    """What an engine's process holds now of these devices, or, where no driver tells, what it held once it was
    loaded."""
    now = taken_bytes(engine.pid, engine.devices, devices) if engine.pid is not None else None
    return engine.memory_measured_bytes if now is None else now


def _devices(beat: Heartbeat) -> Metric:
    family = _family("backendai_device_utilization", "device_metric_name", ["agent_id", "device_id"])
    for device in beat.devices:
        for figure in device_figures(device):
            _add(family, figure, [beat.node, device.device])
    if beat.usage is not None:
        _add(family, ("net_rx", beat.usage.network_received_bytes, None), [beat.node, "node"])
        _add(family, ("net_tx", beat.usage.network_sent_bytes, None), [beat.node, "node"])
        for disk in beat.usage.disks:
            _add(family, ("disk", disk.total_bytes - disk.free_bytes, disk.total_bytes), [beat.node, disk.place])
    return family


def device_figures(device: Device) -> Iterator[Figure]:
    """Figures of one device."""
    metrics, prefix = device.metrics, "" if device.backend == "cpu" else f"{device.backend}_"
    used = metrics.memory_used_bytes
    yield (
        f"{prefix}mem",
        device.memory_total_bytes - device.memory_free_bytes if used is None else used,
        (device.memory_total_bytes),
    )
    yield f"{prefix}util" if prefix else "cpu_util", metrics.utilization_percent, 100
    yield f"{prefix}temp", metrics.temperature_c, None
    yield f"{prefix}power", metrics.power_w, metrics.power_limit_w


def renamed(
    ours: Collector, name: str, labels: Mapping[str, str], values: Mapping[str, str] | None = None, **more: str
) -> Iterator[Metric]:
    """A series of ours under another name, with other names of labels, other values of them, and more of them."""
    for metric in ours.collect():
        out = Metric(name, metric.documentation, metric.type)
        for sample in metric.samples:
            suffix = sample.name.removeprefix(metric.name)
            if suffix != "_created":
                named = {labels.get(key, key): (values or {}).get(value, value) for key, value in sample.labels.items()}
                out.add_sample(name + suffix, named | more, sample.value)
        yield out


def _family(name: str, figure: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, "As Backend.AI's agent tells it.", labels=[figure, *labels, "value_type"])


def _add(family: GaugeMetricFamily, figure: Figure, labels: list[str]) -> None:
    name, current, capacity = figure
    if current is None:
        return
    family.add_metric([name, *labels, "current"], current)
    if capacity:
        family.add_metric([name, *labels, "capacity"], capacity)
        family.add_metric([name, *labels, "pct"], 100 * current / capacity)
