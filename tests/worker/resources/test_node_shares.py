"""What the heartbeat tells of a node's resources."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from schemas.node import Device, Engine
from worker.accelerators.shares import node_shares, reserved_bytes
from worker.cores import usable_cores
from worker.settings import WorkerSettings

GIB = 1 << 30


def device(name: str, total: int, **more: Any) -> Device:
    backend = name.partition(":")[0]
    return Device(device=name, backend=backend, name=name, memory_total_bytes=total, memory_free_bytes=total, **more)


def engine(number: int, *devices: str, model: str = "m", **more: Any) -> Engine:
    given: dict[str, Any] = {"state": "ready", "slots_total": 1, "since": 0, "pid": 10 + number} | more
    return Engine(engine=f"engine-{number}", model=model, devices=devices, **given)


HOST = [device("cpu:0", 64 * GIB), device("cuda:0", 24 * GIB), device("cuda:1", 24 * GIB)]


def test_engines_occupy_what_was_measured_or_else_planned() -> None:
    engines = [
        engine(0, "cuda:0", "cuda:1", memory_planned_bytes=9 * GIB, memory_measured_bytes=8 * GIB),
        engine(1, "cuda:0", memory_planned_bytes=2 * GIB),
        engine(2, "cpu:0", memory_measured_bytes=GIB),
        engine(3, "cuda:1", memory_planned_bytes=2 * GIB, pid=None, state="crashed"),
    ]
    found = node_shares(HOST, engines, WorkerSettings(reserved_memory_bytes=GIB), cores=16)
    assert sorted(found) == ["cpu", "cuda.device", "cuda.mem", "mem"]
    memory = found["cuda.mem"]
    assert (memory.total, memory.reserved) == (48 * GIB, 2 * GIB)
    assert (memory.occupied, memory.available) == (10 * GIB, 36 * GIB)
    assert (found["cuda.device"].occupied, found["cuda.device"].available) == (2, 0)
    assert (found["mem"].occupied, found["mem"].available) == (GIB, 62 * GIB)
    assert (found["cpu"].total, found["cpu"].occupied) == (16, 1 + 1 + 15)
    assert found["cpu"].available == 0


def test_unified_memory_is_the_hosts() -> None:
    host = [device("cpu:0", 32 * GIB), device("metal:0", 24 * GIB, unified_memory=True)]
    found = node_shares(host, [engine(0, "metal:0", memory_measured_bytes=4 * GIB)], WorkerSettings(), cores=8)
    assert sorted(found) == ["cpu", "mem", "metal.device"]
    assert (found["mem"].total, found["mem"].occupied) == (32 * GIB, 4 * GIB)


def test_processors_are_those_that_the_settings_give() -> None:
    models = [
        {"model": "a", "path": "/a", "limits": {"cpu_cores": 2.5}},
        {"model": "b", "path": "/b", "threads": 4},
    ]
    settings = WorkerSettings.model_validate({"models": models})
    engines = [engine(0, "cpu:0", model="a"), engine(1, "cpu:0", model="b")]
    assert node_shares(HOST, engines, settings, cores=16)["cpu"].occupied == 7


def test_what_is_reserved_is_kept_of_each_device() -> None:
    settings = WorkerSettings.model_validate({"reserved": {"cpu": "1", "mem": "2G", "cuda.mem": "5%"}})
    found = node_shares(HOST, [], settings, cores=16)
    assert (found["cpu"].reserved, found["cpu"].available) == (1, 15)
    assert found["mem"].reserved == 2 * GIB
    assert found["cuda.mem"].reserved == Decimal(48 * GIB) / 20
    assert reserved_bytes(HOST[1], settings) == 24 * GIB // 20
    assert reserved_bytes(HOST[1], WorkerSettings(reserved_memory_bytes=7)) == 7


def test_a_container_has_the_processors_of_its_quota(tmp_path: Path) -> None:
    everything = usable_cores(tmp_path)
    for text, cores in [("100000 100000", 1), ("max 100000", everything), ("50000 100000", 1), ("x", everything)]:
        (tmp_path / "cpu.max").write_text(f"{text}\n")
        assert usable_cores(tmp_path) == cores
