"""What `amd-smi … --json` tells. ROCm 6 answers with a list, ROCm 7 with that list under `gpu_data`; a figure is a
number, `{"value", "unit"}`, or `"N/A"`, and fields come and go between releases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from schemas.node import DeviceMetrics, ProcessMemory
from worker.accelerators.figures import first, inside, number, parsed, size, text, whole
from worker.accelerators.nvml import held
from worker.accelerators.tool import Source, Tool

LIVE_S: Final = 10.0
"""The program is Python and takes most of a second: what the kernel shows as well is read there."""
STATIC_S: Final = 3600.0
TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of the program's list."""

    index: int
    name: str | None
    pci: str | None
    uuid: str | None
    driver: str | None
    memory: tuple[int, int] | None
    """Total and free bytes."""
    metrics: DeviceMetrics


class AmdSmi:
    """The program."""

    def __init__(
        self,
        static: Source | None = None,
        numbers: Source | None = None,
        metric: Source | None = None,
        processes: Source | None = None,
    ) -> None:
        self._static = static or _tool("static", STATIC_S)
        self._numbers = numbers or _tool("list", STATIC_S, "-e")
        self._metric = metric or _tool("metric", LIVE_S)
        self._processes = processes or _tool("process", LIVE_S)

    def gpus(self) -> list[Gpu]:
        """Its list; empty where the program is not there or gives no answer."""
        static, metric = _records(self._static.read()), _records(self._metric.read())
        if not static and not metric:
            return []
        numbers, processes = _records(self._numbers.read()), _records(self._processes.read())
        return [
            _gpu(index, static.get(index), numbers.get(index), metric.get(index), processes.get(index))
            for index in sorted(metric if metric else static)
        ]


def _tool(verb: str, every_s: float, *flags: str) -> Tool:
    return Tool(("amd-smi", verb, *flags, "--json"), every_s=every_s, timeout_s=TIMEOUT_S)


def _records(document: str | None) -> dict[int, Mapping[str, Any]]:
    """By GPU."""
    found = parsed(document)
    listed = inside(found, "gpu_data") if isinstance(found, dict) else found
    if not isinstance(listed, list):
        return {}
    kept: dict[int, Mapping[str, Any]] = {}
    for record in cast(list[Any], listed):
        index = whole(inside(record, "gpu"))
        if index is not None and 0 <= index < 1024:
            kept[index] = cast(Mapping[str, Any], record)
    return kept


def _gpu(index: int, static: Any, numbers: Any, metric: Any, processes: Any) -> Gpu:
    total = size(inside(metric, "mem_usage", "total_vram"))
    if total is None:
        total = size(inside(static, "vram", "size"))
    used = size(inside(metric, "mem_usage", "used_vram"))
    memory = None if total is None or used is None else (total, max(total - used, 0))
    pci = text(inside(static, "bus", "bdf")) or text(inside(numbers, "bdf"))
    enumerated = whole(inside(numbers, "hip_id"))
    return Gpu(
        index=index if enumerated is None else enumerated,
        name=text(inside(static, "asic", "market_name")) or text(inside(static, "board", "product_name")),
        pci=pci.lower() if pci else None,
        uuid=text(inside(numbers, "hip_uuid")),
        driver=text(inside(static, "driver", "version")),
        memory=memory,
        metrics=_metrics(metric, used, processes),
    )


def _metrics(record: Any, used_bytes: int | None, processes: Any) -> DeviceMetrics:
    def figure(*path: str) -> float | None:
        return number(inside(record, *path))

    return DeviceMetrics(
        memory_used_bytes=used_bytes,
        utilization_percent=figure("usage", "gfx_activity"),
        temperature_c=first(*(figure("temperature", place) for place in ("edge", "hotspot", "mem"))),
        power_w=first(*(figure("power", f"{kind}socket_power") for kind in ("", "current_", "average_"))),
        power_limit_w=first(figure("power", "power_limit"), figure("power", "current_power_limit")),
        energy_j=figure("energy", "total_energy_consumption"),
        clock_core_mhz=first(figure("clock", "gfx_0", "clk"), figure("clock", "gfx", "clk")),
        clock_memory_mhz=first(figure("clock", "mem_0", "clk"), figure("clock", "mem", "clk")),
        throttle=_throttle(record),
        ecc_corrected_total=whole(inside(record, "ecc", "total_correctable_count")),
        ecc_uncorrected_total=whole(inside(record, "ecc", "total_uncorrectable_count")),
        processes=_held(processes),
    )


def _throttle(record: Any) -> tuple[str, ...] | None:
    """Newer releases tell what is violated, older ones only that something is."""
    reasons = inside(record, "throttle")
    if isinstance(reasons, dict):
        pairs = cast(dict[str, Any], reasons).items()
        told = {name: value for name, value in pairs if name.endswith("_violation_status") and text(value)}
        if told:
            active = (name for name, value in told.items() if str(value).lower() == "active")
            return tuple(name.removesuffix("_violation_status") for name in active)
    status = text(inside(record, "power", "throttle_status"))
    return None if status is None else ("throttled",) if status.lower() == "throttled" else ()


def _held(record: Any) -> tuple[ProcessMemory, ...] | None:
    if record is None:
        return None
    listed = inside(record, "process_list")
    return held(_pairs(cast(list[Any], listed) if isinstance(listed, list) else []))


def _pairs(listed: list[Any]) -> Iterator[tuple[int, int | None]]:
    """Where nothing runs, `process_info` is a sentence."""
    for entry in listed:
        about = inside(entry, "process_info")
        pid = whole(inside(about, "pid"))
        if pid is not None:
            yield pid, size(inside(about, "memory_usage", "vram_mem"), "b")
