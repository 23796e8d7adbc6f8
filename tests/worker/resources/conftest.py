"""A tree of cgroup files as a kernel shows it, and programs that use a machine."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

# Texts in the format that Linux 6.1 and 6.8 show them in, by Documentation/admin-guide/cgroup-v2.rst ("Interface
# Files"); the keys of cpu.stat and memory.stat are a choice of those that such kernels have.
CPU_STAT = """usage_usec 61504310
user_usec 49203011
system_usec 12301299
core_sched.force_idle_usec 0
nr_periods 1804
nr_throttled 411
throttled_usec 9005002
nr_bursts 0
burst_usec 0
"""
MEMORY_STAT = """anon 734003200
file 2147483648
kernel 18874368
shmem 0
file_mapped 2080374784
inactive_anon 733995008
active_anon 8192
inactive_file 1073741824
active_file 1073741824
pgfault 1190343
"""
MEMORY_EVENTS = """low 0
high 0
max 318
oom 2
oom_kill 1
oom_group_kill 1
"""
IO_STAT = """8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0
8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021
253:0 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0
7:0
"""


def files(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def write_files() -> Callable[[Path, dict[str, str]], Path]:
    return files


@pytest.fixture
def engine_cgroup(tmp_path: Path) -> Path:
    """An engine's cgroup in the middle of its life, with all controllers."""
    return files(
        tmp_path / "engine-0",
        {
            "cgroup.procs": "4711\n4712\n",
            "cgroup.threads": "4711\n4712\n4713\n",
            "cgroup.events": "populated 1\nfrozen 0\n",
            "cpu.stat": CPU_STAT,
            "memory.current": "2904555520\n",
            "memory.peak": "2999999488\n",
            "memory.swap.current": "4096\n",
            "memory.max": "max\n",
            "memory.stat": MEMORY_STAT,
            "memory.events": MEMORY_EVENTS,
            "io.stat": IO_STAT,
        },
    )


@pytest.fixture
def delegated(tmp_path: Path) -> tuple[Path, Path]:
    """A fake /proc/self and the cgroup of a service with Delegate=yes, as systemd makes it."""
    root = tmp_path / "cgroup"
    service = root / "system.slice" / "puna.d"
    files(
        service,
        {
            "cgroup.type": "domain\n",
            "cgroup.procs": "100\n",
            "cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
            "cgroup.subtree_control": "",
            "worker/cgroup.procs": "",
            "puna-n1/cgroup.subtree_control": "",
        },
    )
    proc = files(
        tmp_path / "proc",
        {
            "cgroup": "0::/system.slice/puna.d\n",
            "mountinfo": "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw\n"
            f"35 25 0:30 / {root} rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
        },
    )
    return proc, service


@pytest.fixture
def run_program() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Factory: a Python program as a child, ended with the test. It tells when it is under way by a line."""
    started: list[subprocess.Popen[str]] = []

    def run(code: str, **more: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **more)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
        process.communicate()
