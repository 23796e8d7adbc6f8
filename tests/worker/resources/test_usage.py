"""What real processes take, and what is made of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.cgroupfigures import CgroupFigures, figures
from worker.engineusage import read_engine, read_engines
from worker.procfigures import Kin, kinships, members, read_process
from worker.scopes import Scope, StatisticsSettings
from worker.usage import ProcessUsage, Sources, Traffic, Usage, Watched

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 1 << 20
BUSY = """
import os, sys, time
read, write = os.pipe()
child = os.fork()
held = bytearray(os.urandom(1 << 20) * 24)
file = open(os.environ["FILE"] + str(child == 0), "wb")
file.write(os.urandom(1 << 20) * 4)
file.flush()
os.fsync(file.fileno())
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
if child == 0:
    os.write(write, b"x")
    time.sleep(60)
os.read(read, 1)
print("ready")
sys.stdin.readline()
end = time.process_time() + 0.5
while time.process_time() < end:
    pass
print("done")
time.sleep(60)
"""


class Counts:
    """Who counts readings."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def statistics_begun(self, scope: str) -> None:
        self.seen.append(("begun", scope))

    def statistics_done(self, scope: str) -> None:
        self.seen.append(("done", scope))

    def statistics_failed(self, scope: str, error: Exception) -> None:
        self.seen.append((type(error).__name__, scope))


@pytest.fixture
def busy(run_program: Any, tmp_path: Path) -> subprocess.Popen[str]:
    """A program that has burnt 0.6 s, written 8 MiB and holds 48, half of each in a child of its own."""
    return run_program(BUSY, env={**os.environ, "FILE": str(tmp_path / "file")}, process_group=0)


def usage_of(watched: list[Watched], **more: Any) -> tuple[Usage, Counts]:
    counts = Counts()
    settings = more.pop("settings", StatisticsSettings())
    clock = more.pop("clock", None)
    given: dict[str, Any] = {"places": {}, "cgroup": lambda _: CgroupFigures(), "scratch_bytes": lambda _: None}
    sources = Sources(engines=lambda: watched, **(given | more))
    return Usage(settings, sources, counts, **({"clock": clock} if clock else {})), counts


@linux
def test_an_engine_is_all_its_processes(busy: subprocess.Popen[str]) -> None:
    reading = read_engine(members(busy.pid, kinships()), CgroupFigures(), 7, 5.0)
    usage = reading.usage
    assert (usage.processes, usage.source, usage.sampled_at, usage.scratch_bytes) == (2, "processes", 5.0, 7)
    assert 0.4 <= (reading.cpu_s or 0) < 5
    assert (usage.memory_anonymous_bytes or 0) >= 48 * MIB
    assert (usage.memory_bytes or 0) > (usage.memory_anonymous_bytes or 0)
    assert 0 < (usage.memory_proportional_bytes or 0) < (usage.memory_bytes or 0)
    assert (usage.threads or 0) >= 2
    assert (usage.open_files or 0) >= 6
    assert (usage.written_bytes or 0) >= 8 * MIB or not io_is_told(busy.pid)
    assert (usage.write_ops or 0) >= 2 or not io_is_told(busy.pid)


def io_is_told(pid: int) -> bool:
    found = read_process(pid)
    return found is not None and bool(found.written_bytes)


@linux
async def test_processor_time_becomes_percent_between_two_readings(busy: subprocess.Popen[str]) -> None:
    now = 100.0
    usage, counts = usage_of([Watched("engine-0", "m", busy.pid)], clock=lambda: now)
    await usage.sample("engine")
    first = usage.engine("engine-0")
    assert first is not None
    assert first.cpu_percent is None
    assert busy.stdin and busy.stdout
    busy.stdin.write("\n")
    busy.stdin.flush()
    await asyncio.to_thread(busy.stdout.readline)
    now = 101.0  # as if it had taken just a second
    await usage.sample("engine")
    second = usage.engine("engine-0")
    assert second is not None
    assert 45 <= (second.cpu_percent or 0) <= 75
    moved = usage.moved()["engine", "engine-0", "cpu_s"]
    assert (moved.count, moved.rate) == (2, pytest.approx(moved.diff))
    assert counts.seen == [("begun", "engine"), ("done", "engine")] * 2


@linux
async def test_an_engine_that_is_gone_is_forgotten_and_another_process_begins_anew(
    busy: subprocess.Popen[str],
) -> None:
    watched = [Watched("engine-0", "m", busy.pid)]
    usage, _ = usage_of(watched)
    await usage.sample("engine")
    await usage.sample("engine")
    watched[:] = [Watched("engine-0", "m", os.getpid())]
    await usage.sample("engine")
    assert usage.moved()["engine", "engine-0", "cpu_s"].count == 1
    watched.clear()
    await usage.sample("engine")
    assert (usage.engine("engine-0"), usage.moved()) == (None, {})


@linux
async def test_each_process_is_told_by_itself(busy: subprocess.Popen[str]) -> None:
    watched = [Watched("engine-0", "m", busy.pid)]
    usage, _ = usage_of(watched)
    await usage.sample("process")
    found: tuple[ProcessUsage, ...] = usage.processes
    assert [each.engine for each in found] == ["engine-0", "engine-0"]
    assert busy.pid in [each.figures.pid for each in found]
    watched.clear()
    await usage.sample("process")
    assert (usage.processes, usage.moved()) == ((), {})


async def test_the_host_is_told(tmp_path: Path) -> None:
    places = {"state": tmp_path / "not" / "yet", "models": tmp_path}
    usage, _ = usage_of([], places=places, traffic=lambda: Traffic(3, 4))
    await usage.sample("node")
    first = usage.node
    await usage.sample("node")
    node = usage.node
    assert first is not None and node is not None
    assert (node.memory_total_bytes or 0) > (node.memory_available_bytes or 0) > 0
    assert [disk.place for disk in node.disks] == ["state", "models"]
    assert all(0 <= disk.free_bytes <= disk.total_bytes for disk in node.disks)
    assert (node.cpu_count or 0) >= 1
    assert first.network_received_bytes_per_s is None
    assert (node.network_received_bytes_per_s or 0) >= 0
    assert (node.bus_received_bytes, node.bus_sent_bytes) == (3, 4)


async def test_only_what_is_switched_on_is_read() -> None:
    off = Scope(enabled=False)
    settings = StatisticsSettings(engine=off, process=off, node=Scope(interval_s=0.1))
    usage, counts = usage_of([], settings=settings)
    running = asyncio.create_task(usage.run())
    async with asyncio.timeout(10):
        while len(counts.seen) < 4:
            await asyncio.sleep(0.01)
    running.cancel()
    assert {scope for _, scope in counts.seen} == {"node"}


@linux
async def test_a_reading_that_fails_is_counted_and_not_the_last() -> None:
    def broken(engine: str) -> CgroupFigures:
        raise RuntimeError(engine)

    usage, counts = usage_of([Watched("engine-0", "m", os.getpid())], cgroup=broken)
    await usage.sample("engine")
    assert counts.seen == [("begun", "engine"), ("RuntimeError", "engine")]


@linux
def test_a_cgroup_knows_better(engine_cgroup: Path) -> None:
    reading = read_engine([os.getpid()], figures(engine_cgroup), None, 1.0)
    usage = reading.usage
    assert (usage.source, usage.processes, usage.threads) == ("cgroup", 2, 3)
    assert (usage.memory_bytes, usage.memory_anonymous_bytes, usage.swap_bytes) == (2904555520, 734003200, 4096)
    assert (usage.out_of_memory_kills, usage.cpu_throttled_s) == (1, 9.005)
    assert (usage.open_files or 0) > 0


@linux
def test_a_process_that_is_gone_or_a_zombie_is_nobody(tmp_path: Path, write_files: Callable[..., Path]) -> None:
    assert read_process(2**22 + 1) is None
    dead = f"5 (a) b) Z {' '.join(['0'] * 49)}\n"
    write_files(tmp_path / "5", {"stat": dead})
    assert read_process(5, tmp_path) is None
    assert (
        read_engines({"e": 5}, 0.0, cgroup=lambda _: CgroupFigures(), scratch_bytes=lambda _: None, proc=tmp_path) == {}
    )


@linux
def test_a_process_of_another_user_tells_what_it_may(tmp_path: Path, write_files: Callable[..., Path]) -> None:
    stat = "7 (odd ) name) S 1 7 7 0 -1 4194560 100 0 0 0 200 100 50 50 20 0 9 0 12345 1000 100\n"
    status = "Name:\todd ) name\nVmRSS:\t    2048 kB\nRssAnon:\t  1024 kB\nThreads:\t9\n"
    write_files(tmp_path / "7", {"stat": stat, "status": status})
    found = read_process(7, tmp_path)
    assert found is not None
    assert (found.cpu_user_s, found.cpu_system_s, found.threads) == (2.5, 1.5, 9)
    assert (found.memory_bytes, found.memory_anonymous_bytes, found.swap_bytes) == (2 * MIB, MIB, None)
    assert (found.open_files, found.read_bytes) == (None, None)


def test_members_are_the_group_and_all_that_descends_from_it() -> None:
    kin = {
        1: Kin(0, 1),
        10: Kin(1, 10),
        11: Kin(10, 10),
        12: Kin(11, 12),
        13: Kin(1, 10),
        14: Kin(13, 14),
        20: Kin(1, 20),
    }
    assert members(10, kin) == [10, 11, 12, 13, 14]
    assert members(99, kin) == []
