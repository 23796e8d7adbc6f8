"""Every series has its name, labels and sums; those of the references too."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from schemas.errors import ModelNotFound
from schemas.node import (
    Device,
    DeviceMetrics,
    DiskUsage,
    Engine,
    EngineUsage,
    Heartbeat,
    NodeUsage,
    ProcessMemory,
    Share,
)
from schemas.request import RequestHead
from worker.compat import Compat, memory_held_bytes
from worker.gauges import Sights
from worker.happenings import MODELS_LIMIT, OTHER
from worker.limits import EngineLimits
from worker.metrics import Metrics
from worker.moving import Moved, MovingStatistics
from worker.procfigures import ProcessFigures
from worker.reply import Summary
from worker.usage import ProcessUsage
from worker.work import Claim, Work

GIB = 1 << 30
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def heartbeat() -> Heartbeat:
    usage = EngineUsage(
        sampled_at=1, processes=2, threads=9, cpu_percent=150, cpu_user_s=3, cpu_system_s=1, memory_bytes=2 * GIB,
        memory_anonymous_bytes=GIB, read_bytes=10, written_bytes=20, scratch_bytes=5 << 20, out_of_memory_kills=0,
        bus_received_bytes=31, bus_sent_bytes=32,
    )  # fmt: skip
    engine = Engine(
        engine="engine-0", model="org/m:Q4", devices=("cuda:0",), state="ready", slots_total=2, pid=7, since=0,
        memory_planned_bytes=3 * GIB, memory_measured_bytes=4 * GIB, pinned=True, usage=usage,
    )  # fmt: skip
    other = Engine(engine="engine-1", model="n", devices=("cpu:0",), state="crashed", slots_total=1, since=0)
    figures = DeviceMetrics(
        memory_used_bytes=4 * GIB, utilization_percent=50, temperature_c=61, power_w=200, power_limit_w=400,
        clock_core_mhz=1500, energy_j=1000, throttle=("power",), ecc_uncorrected_total=1,
    )  # fmt: skip
    gpu = Device(
        device="cuda:0", backend="cuda", name="G", memory_total_bytes=16 * GIB, memory_free_bytes=12 * GIB,
        metrics=figures,
    )  # fmt: skip
    cpu = Device(
        device="cpu:0", backend="cpu", name="C", memory_total_bytes=8 * GIB, memory_free_bytes=2 * GIB,
        metrics=DeviceMetrics(utilization_percent=25),
    )  # fmt: skip
    node = NodeUsage(
        sampled_at=1, cpu_percent=25, cpu_count=4, memory_total_bytes=8 * GIB, memory_available_bytes=2 * GIB,
        swap_used_bytes=0, disks=(DiskUsage(place="state", total_bytes=100, free_bytes=40),),
        network_received_bytes=11, network_sent_bytes=12, bus_received_bytes=13,
    )  # fmt: skip
    share = Share(total=Decimal(4), reserved=Decimal(1), occupied=Decimal(2), available=Decimal(1))
    return Heartbeat(
        node="n1", boot_id="b", sequence=1, version="1", started_at=0, devices=(gpu, cpu), engines=(engine, other),
        shares={"cpu": share}, usage=node,
    )  # fmt: skip


class Moves:
    def moved(self) -> dict[tuple[str, str, str], Moved]:
        moving = MovingStatistics()
        for at, value in enumerate((2.0, 6.0)):
            moving.update(value, at)
        assert moving.moved is not None
        return {("engine", "engine-0", "memory_bytes"): moving.moved, ("process", "7@1", "cpu_s"): moving.moved}


def scraped(metrics: Metrics) -> Series:
    rows = [row for family in text_string_to_metric_families(metrics.text().decode()) for row in family.samples]
    found = {(row.name, frozenset(row.labels.items())): row.value for row in rows}
    assert len(found) == len(rows), "a series is told twice"
    return found


def value(found: Series, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def own() -> Metrics:
    metrics = Metrics()
    metrics.add(Sights(heartbeat, Moves()))
    return metrics


def test_engines_devices_host_and_shares_are_told() -> None:
    found = scraped(own())
    of: Any = {"engine": "engine-0", "model": "org/m:Q4"}
    assert value(found, "puna_worker_engines", state="ready") == 1
    assert sum(number for (name, _), number in found.items() if name == "puna_worker_engines") == 2
    assert value(found, "puna_worker_engine_ready", **of) == 1
    assert value(found, "puna_worker_engine_pinned", **of) == 1
    assert value(found, "puna_worker_engine_memory_measured_bytes", **of) == 4 * GIB
    assert value(found, "puna_worker_engine_cpu_user_seconds_total", **of) == 3
    assert value(found, "puna_worker_engine_cpu_ratio", **of) == 1.5
    assert value(found, "puna_worker_engine_host_memory_anonymous_bytes", **of) == GIB
    assert value(found, "puna_worker_engine_written_bytes_total", **of) == 20
    gpu: Any = {"device": "cuda:0", "backend": "cuda"}
    assert value(found, "puna_worker_device_utilization_ratio", **gpu) == 0.5
    assert value(found, "puna_worker_device_temperature_celsius", **gpu) == 61
    assert value(found, "puna_worker_device_energy_joules_total", **gpu) == 1000
    assert value(found, "puna_worker_device_clock_core_hertz", **gpu) == 1.5e9
    assert value(found, "puna_worker_device_throttled", **gpu) == 1
    assert value(found, "puna_worker_device_usable", **gpu) == 1
    assert value(found, "puna_worker_node_disk_bytes", place="state", kind="free") == 40
    assert value(found, "puna_worker_node_network_bytes_total", way="sent") == 12
    assert value(found, "puna_worker_bus_bytes_total", way="received") == 13
    shares = {kind: value(found, "puna_worker_share", slot="cpu", kind=kind) for kind in ("total", "available")}
    assert shares == {"total": 4, "available": 1}


def test_what_is_not_known_is_no_series() -> None:
    found = scraped(own())
    assert not [
        name for name, labels in found if name.startswith("puna_worker_engine_cpu") and ("model", "n") in labels
    ]
    assert ("puna_worker_bus_bytes_total", frozenset({("way", "sent")})) not in found


def test_moving_statistics_are_told_but_for_processes() -> None:
    found = scraped(own())
    of: Any = {"scope": "engine", "subject": "engine-0", "figure": "memory_bytes"}
    told = {name: value(found, "puna_worker_statistics", value=name, **of) for name in ("min", "max", "sum", "rate")}
    assert told == {"min": 2, "max": 6, "sum": 8, "rate": 4}
    assert not [labels for _, labels in found if ("scope", "process") in labels]


@dataclass
class Spec:
    model: str


@dataclass
class Life:
    engine_id: str = "engine-0"
    spec: Spec = field(default_factory=lambda: Spec("m"))
    state: str = "starting"
    reason_code: str | None = "loading"
    adopted: bool = False
    breaker_open: bool = False
    load_seconds: float | None = 3.0


def test_the_life_of_an_engine_is_counted_once() -> None:
    metrics, engine = Metrics(), Life()
    for state, code in [
        ("starting", "loading"), ("ready", None), ("crashed", "out-of-memory"), ("starting", "loading"),
        ("crashed", "failed-to-start"), ("starting", "loading"), ("ready", None), ("stopping", "evicted"),
        ("stopped", "evicted"),
    ]:  # fmt: skip
        told = replace(engine, state=state, reason_code=code, breaker_open=code == "failed-to-start")
        metrics.engine_changed(told)
        metrics.engine_changed(told)
    metrics.engine_changed(Life("engine-1", state="ready", adopted=True))
    found = scraped(metrics)
    assert value(found, "puna_worker_loads_total", model="m", outcome="ready") == 2
    assert value(found, "puna_worker_loads_total", model="m", outcome="crashed") == 1
    assert value(found, "puna_worker_load_seconds_count", model="m") == 2
    assert value(found, "puna_worker_load_seconds_sum", model="m") == 6
    assert value(found, "puna_worker_engine_ends_total", model="m", reason="out-of-memory") == 1
    assert value(found, "puna_worker_engine_failures_total", model="m") == 2
    assert value(found, "puna_worker_evictions_total", model="m") == 1
    assert value(found, "puna_worker_breakers_opened_total", model="m") == 1
    assert value(found, "puna_worker_adoptions_total", model="m") == 1
    assert value(found, "puna_worker_engine_moves_total", model="m", state="starting") == 3


def test_switches_are_counted_by_their_event() -> None:
    metrics = Metrics()
    metrics.told("model_switched", {"model": "m", "stopped": ["n"]})
    metrics.told("node_started", {})
    assert value(scraped(metrics), "puna_worker_switches_total", model="m") == 1


def test_models_are_bounded() -> None:
    metrics = Metrics()
    names = [metrics.model(f"m{number}") for number in range(MODELS_LIMIT + 50)]
    assert names[-1] == OTHER
    assert len(set(names)) == MODELS_LIMIT + 1
    assert metrics.model("m1") == "m1"


def compatible() -> tuple[Metrics, Series]:
    metrics = own()
    processes = [ProcessUsage("engine-0", ProcessFigures(7, 1.0, 2.0, 1.0, memory_bytes=GIB), 150.0)]
    metrics.add(Compat(metrics, heartbeat, lambda _: EngineLimits(scratch_bytes=10 << 20), lambda: processes))
    metrics.ordered("load", 0.2)
    metrics.ordered("load", 0.2, ModelNotFound("no"))
    metrics.sync_begun()
    metrics.sync_done(3)
    metrics.sync_failed(OSError())
    for scope in ("node", "engine"):
        metrics.statistics_begun(scope)
        metrics.statistics_done(scope)
    metrics.statistics_failed("engine", OSError())
    metrics.heartbeat_made()
    return metrics, scraped(metrics)


def test_an_agent_of_the_references_is_told() -> None:
    _, found = compatible()
    agent = {"agent_id": "n1"}
    assert value(found, "backendai_agent_heartbeat", **agent) > 1.7e9
    assert value(found, "backendai_agent_cpu_usage", **agent) == 25
    assert value(found, "backendai_agent_mem_usage", **agent) == 6 * GIB
    assert value(found, "backendai_agent_gpu_usage", **agent) == 50
    assert value(found, "backendai_kernel_count", **agent) == 1


def test_control_verbs_are_remote_calls() -> None:
    _, found = compatible()
    assert value(found, "backendai_rpc_requests_total", method="load") == 2
    assert value(found, "backendai_rpc_failure_requests_total", method="load", exception="model_not_found") == 1
    assert value(found, "backendai_rpc_request_duration_seconds_count", method="load") == 2
    assert value(found, "backendai_rpc_request_duration_seconds_sum", method="load") == 0.4
    assert value(found, "backendai_rpc_request_duration_seconds_bucket", method="load", le="+Inf") == 2


def test_containers_devices_and_processes_have_current_capacity_and_percent() -> None:
    _, found = compatible()

    def container(name: str, kind: str) -> float:
        more = {"session_id": "org/m:Q4", "user_id": "undefined", "project_id": "undefined"}
        labels = {"container_metric_name": name, "agent_id": "n1", "kernel_id": "engine-0", "value_type": kind}
        return value(found, "backendai_container_utilization", **labels, **more)

    assert [container("cpu_util", kind) for kind in ("current", "capacity", "pct")] == [1500, 1000, 150]
    assert container("cpu_used", "current") == 4000
    assert [container("mem", kind) for kind in ("current", "capacity", "pct")] == [2 * GIB, 8 * GIB, 25]
    assert [container("cuda_mem", kind) for kind in ("current", "capacity", "pct")] == [4 * GIB, 16 * GIB, 25]
    assert container("cuda_util", "pct") == 50
    assert (container("io_read", "current"), container("io_write", "current")) == (10, 20)
    assert container("io_scratch_size", "pct") == 50
    assert (container("net_rx", "current"), container("net_tx", "current")) == (31, 32)

    def device(name: str, device_id: str, kind: str) -> float:
        labels = {"device_metric_name": name, "agent_id": "n1", "device_id": device_id, "value_type": kind}
        return value(found, "backendai_device_utilization", **labels)

    assert device("cuda_mem", "cuda:0", "pct") == 25
    assert device("cuda_power", "cuda:0", "pct") == 50
    assert device("cuda_temp", "cuda:0", "current") == 61
    assert device("mem", "cpu:0", "current") == 6 * GIB
    assert device("cpu_util", "cpu:0", "current") == 25
    assert device("net_rx", "node", "current") == 11
    assert device("disk", "state", "pct") == 60
    labels = {"process_metric_name": "mem", "agent_id": "n1", "kernel_id": "engine-0", "pid": "7"}
    assert value(found, "backendai_process_utilization", value_type="current", **labels) == GIB


def test_what_an_engine_holds_of_its_gpu_is_what_its_driver_tells_now() -> None:
    beat = heartbeat()
    (gpu, cpu), (engine, other) = beat.devices, beat.engines
    assert memory_held_bytes(engine, [gpu]) == 4 * GIB, "as measured, where the driver does not tell"
    held = (ProcessMemory(pid=7, memory_bytes=5 * GIB), ProcessMemory(pid=8, memory_bytes=GIB))
    shown = gpu.model_copy(update={"metrics": gpu.metrics.model_copy(update={"processes": held})})
    assert memory_held_bytes(engine, [shown, cpu]) == 5 * GIB
    assert memory_held_bytes(other, [shown, cpu]) is None


def test_bytes_over_nats_are_counted_by_model_and_way() -> None:
    metrics, summary = own(), Summary(usage={"completion_tokens": 3}, timings=None, total_s=1.0)
    for origin in ("line", "http"):
        head = RequestHead("chat", "r", "", deadline_s=1.0)
        work = Work(head, "m", b"12345", origin, 0.0, Claim(None, 0.0), False)
        metrics.ended(SimpleNamespace(work=work, summary=summary, outcome=None, bytes_out=70))  # type: ignore[arg-type]
    found = scraped(metrics)
    assert value(found, "puna_worker_engine_bus_bytes_total", model="m", way="received") == 5
    assert value(found, "puna_worker_engine_bus_bytes_total", model="m", way="sent") == 70


def test_when_a_series_began_is_not_told() -> None:
    metrics = own()
    metrics.ordered("load", 0.2)
    assert b"_created" not in metrics.text()


def test_looks_and_readings_are_tasks_of_the_references() -> None:
    _, found = compatible()
    stem, agent = "backendai_sync_container_lifecycle", {"agent_id": "n1"}
    assert value(found, f"{stem}_trigger_count_total", **agent) == 1
    assert value(found, f"{stem}_success_count_total", **agent) == 3
    assert value(found, f"{stem}_failure_count_total", exception="OSError", **agent) == 1
    stem = "backendai_stat_task"
    assert value(found, f"{stem}_trigger_count_total", stat_scope="container", **agent) == 1
    assert value(found, f"{stem}_success_count_total", stat_scope="node", **agent) == 1
    assert value(found, f"{stem}_failure_count_total", stat_scope="container", exception="OSError", **agent) == 1


def test_without_the_setting_there_is_none_of_them() -> None:
    assert b"backendai_" not in own().text()
