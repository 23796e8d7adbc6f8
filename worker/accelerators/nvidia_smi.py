"""NVIDIA's devices through `nvidia-smi`, where NVML cannot be used. Columns go by their names, not by their places."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from typing import Final

import psutil

from schemas.node import Device, DeviceMetrics
from worker.accelerators.figures import number, size, text, whole
from worker.accelerators.nvml import held, short_pci, throttle_names
from worker.accelerators.tool import Source, Tool

EVERY_S: Final = 5.0
"""A call takes 0.1 s, and a second where the driver does not stay loaded."""
BASIC: Final = (
    "index", "uuid", "name", "pci.bus_id", "driver_version", "memory.total", "memory.used", "memory.free",
    "utilization.gpu", "temperature.gpu", "power.draw",
)  # fmt: skip
FULL: Final = (
    *BASIC, "power.limit", "clocks.gr", "clocks.mem", "mig.mode.current", "clocks_throttle_reasons.active",
    "ecc.errors.corrected.volatile.total", "ecc.errors.uncorrected.volatile.total",
)  # fmt: skip
MIG_UNSEEN: Final = "MIG is on, and its instances can only be seen through NVML, which does not work here"
_NO_MEMORY_OF_ITS_OWN: Final = frozenset({"[n/a]", "n/a", "[not supported]", "not supported"})


class NvidiaSmi:
    """The program. One field that a driver does not know fails the whole question, so there is a shorter one."""

    def __init__(
        self, full: Source | None = None, basic: Source | None = None, processes: Source | None = None
    ) -> None:
        self._questions = (full or _gpu_query(FULL), basic or _gpu_query(BASIC))
        self._processes = processes or _query("compute-apps", ("gpu_uuid", "pid", "used_gpu_memory"))

    def devices(self) -> list[Device] | None:
        """The devices of now; `None`: the program is not there or gives no answer."""
        for question in self._questions:
            answer = question.read()
            rows = list(_rows(answer)) if answer is not None else []
            if rows:
                return [device for row in rows if (device := self._device(row)) is not None]
        return None

    def _device(self, row: Mapping[str, str]) -> Device | None:
        index, memory = whole(row.get("index")), _memory(row)
        if index is None or memory is None:
            return None
        total, free, unified = memory
        uuid = text(row.get("uuid"))
        split = row.get("mig.mode.current", "").lower() == "enabled"
        return Device(
            device=f"cuda:{index}",
            backend="cuda",
            name=text(row.get("name")) or "NVIDIA",
            uuid=uuid,
            memory_total_bytes=total,
            memory_free_bytes=0 if split else free,
            metrics=self._metrics(row, total - free, uuid),
            pci=short_pci(text(row.get("pci.bus_id"))),
            driver=text(row.get("driver_version")),
            unified_memory=unified,
            reason=MIG_UNSEEN if split else None,
        )

    def _metrics(self, row: Mapping[str, str], used_bytes: int, uuid: str | None) -> DeviceMetrics:
        return DeviceMetrics(
            memory_used_bytes=used_bytes,
            utilization_percent=number(row.get("utilization.gpu")),
            temperature_c=number(row.get("temperature.gpu")),
            power_w=number(row.get("power.draw")),
            power_limit_w=number(row.get("power.limit")),
            clock_core_mhz=number(row.get("clocks.current.graphics", row.get("clocks.gr"))),
            clock_memory_mhz=number(row.get("clocks.current.memory", row.get("clocks.mem"))),
            throttle=_throttle(row),
            ecc_corrected_total=whole(row.get("ecc.errors.corrected.volatile.total")),
            ecc_uncorrected_total=whole(row.get("ecc.errors.uncorrected.volatile.total")),
            processes=held(self._held_of(uuid)) if uuid else None,
        )

    def _held_of(self, uuid: str) -> Iterator[tuple[int, int | None]]:
        for row in _rows(self._processes.read() or ""):
            pid = whole(row.get("pid"))
            if row.get("gpu_uuid") == uuid and pid is not None:
                yield pid, size(row.get("used_gpu_memory"))


def _gpu_query(fields: tuple[str, ...]) -> Tool:
    return _query("gpu", fields)


def _query(what: str, fields: tuple[str, ...]) -> Tool:
    return Tool(("nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,nounits"), every_s=EVERY_S)


def _rows(answer: str) -> Iterator[Mapping[str, str]]:
    """Lines under their headings, `memory.total [MiB]` as `memory.total`. A line of another length is no row."""
    lines = csv.reader(answer.splitlines(), skipinitialspace=True)
    heads = [head.partition(" [")[0].strip() for head in next(lines, list[str]())]
    for line in lines:
        if len(line) == len(heads) > 1:
            yield dict(zip(heads, (cell.strip() for cell in line), strict=True))


def _memory(row: Mapping[str, str]) -> tuple[int, int, bool] | None:
    """Total, free, and whether it is the host's. `None` for a GPU that is lost (`[Unknown Error]`, `[GPU is lost]`)."""
    total, free = size(row.get("memory.total")), size(row.get("memory.free"))
    if total is not None and free is not None:
        return total, min(free, total), False
    if row.get("memory.total", "").lower() in _NO_MEMORY_OF_ITS_OWN:
        host = psutil.virtual_memory()
        return int(host.total), int(host.available), True
    return None


def _throttle(row: Mapping[str, str]) -> tuple[str, ...] | None:
    bits = row.get("clocks_throttle_reasons.active", row.get("clocks_event_reasons.active", ""))
    try:
        return throttle_names(int(bits, 16))
    except ValueError:
        return None
