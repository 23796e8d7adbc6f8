"""Many nodes are told to hold one model: what the source sends in all, and when the last node has it.

First a node that shares with nobody downloads it alone: its time is what the others' is compared with. All are real
workers on this machine, so they share its processors and its disk, which nodes of a fleet do not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bench.broker import nats_server
from bench.processes import Children, measured_in
from bus.connection import Bus
from bus.kv import Bucket, Entry, Follower
from bus.settings import NatsSettings

MB: Final = 1_000_000
BLOCK: Final = 1 << 20
TARGET_READS: Final = 1.1
TARGET_TIME: Final = 3.0
GROWTH_LIMIT_MIB: Final = 64.0
LIMIT_S: Final = 600.0

Nodes = Annotated[int, typer.Option(help="That share.", min=2)]
Megabytes = Annotated[int, typer.Option("--mb", help="Of the model.", min=1)]
Rate = Annotated[float, typer.Option(help="MB/s of the source, for all together.")]
Folder = Annotated[Path | None, typer.Option("--dir", help="Write here; unset: the temporary folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")]


@dataclass(frozen=True, slots=True)
class Figures:
    """`reads`: bytes that the source sent by the size. `ratio`: the last node's time by that of one alone. Times in
    seconds from the task to its end; `growth_mib`: the most that a worker's memory grew by."""

    nodes: int
    megabytes: int
    reads: float
    alone_s: float
    first_s: float
    last_s: float
    ratio: float
    growth_mib: float
    cpu_s: float
    load: float


def peers(
    nodes: Nodes = 20, megabytes: Megabytes = 200, rate: Rate = 50.0, folder: Folder = None, as_json: Json = False
) -> None:
    """Measure, print, and fail where a target is missed."""
    with measured_in(folder) as work, Children(work) as children:
        found = asyncio.run(_measured(children, nodes, megabytes, int(rate * MB)))
    print(json.dumps(asdict(found)) if as_json else _text(found))
    if found.reads > TARGET_READS or found.ratio > TARGET_TIME or found.growth_mib > GROWTH_LIMIT_MIB:
        raise typer.Exit(1)


async def _measured(children: Children, nodes: int, megabytes: int, bytes_per_s: int) -> Figures:
    folder = children.folder
    sha256 = _content(folder / "model.gguf", megabytes)
    _, nats_url = nats_server(children)
    argv = [sys.executable, "-m", "bench.download.peersource", folder / "model.gguf", str(bytes_per_s)]
    children.start("source", argv)
    port = children.wait("source", lambda: _line(children.log("source")), "port")
    bus = await Bus.connect(NatsSettings.model_validate({"url": nats_url}), name="bench")
    try:
        site = f"http://127.0.0.1:{port}"
        _start(children, nats_url, ["alone"], enabled=False)
        [alone_s] = (await _held(bus, ["alone"], site, sha256)).values()
        names = [f"node{number}" for number in range(nodes)]
        pids = _start(children, nats_url, names, enabled=True)
        before, sent, cpu_s = [_memory(pid) for pid in pids], _sent(site), sum(map(_cpu_s, pids))
        times = await _held(bus, names, site, sha256)
        grown = max(_memory(pid) - was for pid, was in zip(pids, before, strict=True))
        reads = (_sent(site) - sent) / (megabytes * MB)
        last_s, cpu_s = max(times.values()), sum(map(_cpu_s, pids)) - cpu_s
        return Figures(
            nodes,
            megabytes,
            reads,
            alone_s,
            min(times.values()),
            last_s,
            last_s / alone_s,
            grown,
            cpu_s,
            os.getloadavg()[0],
        )
    finally:
        await bus.close()


def _content(path: Path, megabytes: int) -> str:
    digest, left = hashlib.sha256(), megabytes * MB
    with path.open("wb") as file:
        while left:
            block = os.urandom(min(BLOCK, left))
            file.write(block)
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _start(children: Children, nats_url: str, names: Sequence[str], *, enabled: bool) -> list[int]:
    """Workers, ready for tasks."""
    pids: list[int] = []
    for name in names:
        told: dict[str, Any] = {
            "node": name,
            "nats": {"url": nats_url},
            "state_dir": str(children.folder / name),
            "http": {"listen": "127.0.0.1:0"},
            "store": {"reserved_disk_bytes": 0, "use_hub_cache": False},
            "downloads": {"startup_stagger_max_s": 0},
            "peers": {"enabled": enabled},
            "log": {"format": "json"},
        }
        config = children.folder / f"{name}.json"
        config.write_text(json.dumps(told))
        pids.append(children.start(name, [sys.executable, "-m", "worker", "--config", config]))
    for name in names:
        children.wait(name, lambda name=name: _swept(children.log(name)), "open store")
    return pids


def _swept(log: Path) -> bool | None:
    return True if '"event":"store_swept"' in log.read_text() else None


async def _held(bus: Bus, names: Sequence[str], site: str, sha256: str) -> dict[str, float]:
    """Tell all nodes; the seconds after which each had it."""
    ended: dict[str, float] = {}
    over = asyncio.Event()

    def seen(entries: Mapping[str, Entry]) -> None:
        for name in names:
            entry = entries.get(f"t-{name}")
            state = json.loads(entry.value)["state"] if entry else ""
            if state in ("failed", "dead", "cancelled"):
                raise SystemExit(f"{name}: {entry.value.decode() if entry else ''}")
            if state == "done":
                ended.setdefault(name, time.perf_counter())
        if len(ended) == len(names):
            over.set()

    follower = Follower(Bucket(bus, bus.names.bucket_tasks), seen)
    await follower.start()
    body = {"model": "m", "source": f"{site}/model.gguf", "checksums": {"*": f"sha256:{sha256}"}, "skip_parsing": True}
    began = time.perf_counter()
    for name in names:
        task = json.dumps(body | {"id": f"t-{name}"}).encode()
        await bus.js_publish(bus.names.task("download", name), task)
    async with asyncio.timeout(LIMIT_S):
        await over.wait()
    await follower.stop()
    return {name: at - began for name, at in ended.items()}


def _line(log: Path) -> int | None:
    text = log.read_text()
    return int(text) if text.endswith("\n") else None


def _sent(site: str) -> int:
    with urllib.request.urlopen(f"{site}/-/sent") as answer:
        return int(answer.read())


def _memory(pid: int) -> float:
    """Most MiB that the process has had, since the last call."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _text(found: Figures) -> str:
    return (
        f"{found.nodes} nodes x {found.megabytes} MB: source read {found.reads:.3f} times · one alone "
        f"{found.alone_s:.2f} s · first {found.first_s:.2f} s, last {found.last_s:.2f} s = {found.ratio:.2f} x · "
        f"memory +{found.growth_mib:.0f} MiB a worker · {found.cpu_s:.1f} CPU s in all · load {found.load:.1f}"
    )
