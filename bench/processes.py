"""Child processes of a measurement, and what they cost: CPU time to the microsecond and resident memory, from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import psutil

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
POLL_S: Final = 0.02

T = TypeVar("T")


class StartFailed(Exception):
    """A process did not come up. The message has the end of its log."""


class Children:
    """Processes started together and stopped together, newest first. Each has its log in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> int:
        """Start a process in a session of its own and return its pid."""
        with self.log(name).open("wb") as log:
            child = subprocess.Popen(
                [str(part) for part in argv],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append((name, child))
        return child.pid

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait(self, name: str, probe: Callable[[], T | None], what: str) -> T:
        """Wait until `probe` gives something. Raises `StartFailed` when the process ends or time is up."""
        child = next(child for started, child in self._running if started == name)
        give_up_at = time.monotonic() + START_TIMEOUT_S
        while (found := probe()) is None:
            if child.poll() is not None or time.monotonic() > give_up_at:
                state = "is still starting" if child.returncode is None else f"ended with {child.returncode}"
                raise StartFailed(f"{name}: no {what}; it {state}. The end of its log:\n{_tail(self.log(name))}")
            time.sleep(POLL_S)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for _, child in reversed(self._running):
            _stop(child)
        self._running.clear()


@contextlib.contextmanager
def measured_in(logs: Path | None) -> Generator[Path]:
    """The folder of a measurement: `logs`, which stays, or one that goes with it."""
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        yield logs.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="puna-bench-") as folder:
        yield Path(folder)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask, wait, and then end whatever is left of its process group."""
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _tail(log: Path, limit_bytes: int = 3000) -> str:
    return log.read_bytes()[-limit_bytes:].decode(errors="replace")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family(pid: int) -> list[psutil.Process]:
    """The process and all its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


@dataclass(frozen=True, slots=True)
class Cost:
    """What named groups of processes have used up to now."""

    at_s: float
    cpu_s: dict[str, float]
    rss_mib: dict[str, float]
    machine_s: float
    """CPU time of the whole machine, whoever used it."""

    def since(self, earlier: Cost) -> Cost:
        """The difference, with the memory of now."""
        cpu = {name: self.cpu_s[name] - earlier.cpu_s[name] for name in self.cpu_s}
        return Cost(self.at_s - earlier.at_s, cpu, self.rss_mib, self.machine_s - earlier.machine_s)


def measure(groups: Mapping[str, Iterable[int]]) -> Cost:
    """Read the counters of each group's pids."""
    members = {name: tuple(pids) for name, pids in groups.items()}
    return Cost(
        at_s=time.monotonic(),
        cpu_s={name: sum(map(cpu_seconds, pids)) for name, pids in members.items()},
        rss_mib={name: sum(map(_rss_mib, pids)) for name, pids in members.items()},
        machine_s=_machine_seconds(),
    )


def cpu_seconds(pid: int) -> float:
    """CPU time of all its threads. The scheduler's own count where there is one: /proc/PID/stat has ticks of 10 ms."""
    spent_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            spent_ns += int((task / "schedstat").read_text().split()[0])
    if spent_ns:
        return spent_ns / 1e9
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _rss_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def _machine_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
    return sum(times) - idle
