"""A simulated fleet for a measurement: nats-server, simulated nodes in a few processes, and a gateway if asked for."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.broker import nats_server
from bench.processes import Children, StartFailed, free_port
from bench.simulate import journal

OUR_PID: Final = ("--parent-pid", str(os.getpid()))
PROBE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Group:
    """The nodes of one process. Frozen together."""

    pid: int
    nodes: int
    journal: Path

    def freeze(self) -> None:
        """SIGSTOP: alive for the kernel, dead for everybody else."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet that is up. The last group is the one that may be frozen."""

    nats_url: str
    nats_pid: int
    groups: tuple[Group, ...]
    slots: int
    gateway_port: int | None = None
    gateway_pid: int | None = None

    @property
    def nodes(self) -> int:
        """Of all groups."""
        return sum(group.nodes for group in self.groups)

    def pids(self) -> dict[str, tuple[int, ...]]:
        """By what they are, for their cost."""
        known = {"nats-server": (self.nats_pid,), "nodes": tuple(group.pid for group in self.groups)}
        return known | ({"gateway": (self.gateway_pid,)} if self.gateway_pid else {})

    def events(self, since_ns: int = 0) -> list[dict[str, Any]]:
        """What the engines told from then on."""
        lines = journal.read(*(group.journal for group in self.groups))
        return [line for line in lines if line["at"] >= since_ns]


def group_sizes(nodes: int, processes: int, apart: int) -> list[int]:
    """Nodes of each process: `apart` in the last, the others in even parts."""
    if not 0 <= apart < nodes or processes < 1 + (apart > 0):
        raise ValueError(f"{nodes} nodes in {processes} processes with {apart} of them apart")
    others = processes - (apart > 0)
    rest, more = divmod(nodes - apart, others)
    return [rest + (number < more) for number in range(others)] + ([apart] if apart else [])


def start(
    children: Children, sizes: Sequence[int], arguments: Sequence[str], *, slots: int, engines: int, gateway: bool
) -> Fleet:
    """Everything up, and so many engines ready. `arguments` go to `bench.simulate`. Raises `StartFailed`."""
    nats_pid, nats_url = nats_server(children)
    groups = [_group(children, number, sizes, nats_url, arguments) for number in range(len(sizes))]
    for number in range(len(groups)):
        children.wait(f"nodes-{number}", lambda at=number: _announced(children.log(f"nodes-{at}")), "announcement")
    fleet = Fleet(nats_url, nats_pid, tuple(groups), slots)
    children.wait("nodes-0", lambda: _ready(fleet, engines), f"{engines} ready engines")
    if not gateway:
        return fleet
    port, pid = _gateway(children, nats_url)
    return Fleet(nats_url, nats_pid, tuple(groups), slots, port, pid)


def _group(children: Children, number: int, sizes: Sequence[int], nats_url: str, arguments: Sequence[str]) -> Group:
    path = children.folder / f"journal-{number}"
    path.touch()
    argv = [sys.executable, "-m", "bench.simulate", "--nats", nats_url, "--nodes", sizes[number]]
    argv += ["--first", sum(sizes[:number]), "--folder", children.folder / "simulation", "--journal", path, *OUR_PID]
    pid = children.start(f"nodes-{number}", [str(part) for part in (*argv, *arguments)])
    return Group(pid, sizes[number], path)


def _announced(log: Path) -> bool | None:
    """The announcement is the line with the nodes' names."""
    return True if any(line.startswith('{"pid"') for line in log.read_text(errors="replace").splitlines()) else None


def _ready(fleet: Fleet, engines: int) -> bool | None:
    return True if sum(line["event"] == "ready" for line in fleet.events()) >= engines else None


def _gateway(children: Children, nats_url: str) -> tuple[int, int]:
    port = free_port()
    argv = [sys.executable, "-m", "gateway", "--nats", nats_url, "--listen", f"127.0.0.1:{port}", *OUR_PID]
    pid = children.start("gateway", argv, {"PUNA_LOG__LEVEL": "warning"})
    children.wait("gateway", lambda: _lists(f"http://127.0.0.1:{port}/v1/models"), "model in its list")
    return port, pid


def _lists(url: str) -> bool | None:
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as answer:
            return bool(json.load(answer)["data"]) or None
    except (OSError, urllib.error.URLError, ValueError, KeyError):
        return None


def settled(fleet: Fleet, seconds: float) -> None:
    """Let what is left of a run end. Raises `StartFailed` if a process of the fleet is gone."""
    time.sleep(seconds)
    for pid in (pid for pids in fleet.pids().values() for pid in pids):
        if not Path(f"/proc/{pid}").exists():
            raise StartFailed(f"process {pid} of the fleet has ended")
