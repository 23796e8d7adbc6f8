"""A real engine: tokens a second through the fleet against those of the very same process, asked directly.

Engine threads wait for each other at a barrier, so that any other busy process on their cores costs double: the engine
gets all cores but the last, everything else the last one. Every request makes the same number of tokens, whatever the
model would rather do, so both ways do the same work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil

from bench.overhead import paths
from bench.overhead.load import Load, Sample, run
from bench.processes import Children, StartFailed

NAME: Final = "real"
SLOTS: Final = 8
GREEDY: Final = '"temperature":0,"ignore_eos":true,'
LOADS: Final = (
    Load("real engine, 1 stream", 1, answer_chunks=128, requests=4, extra=GREEDY),
    Load("real engine, 8 streams", SLOTS, answer_chunks=64, requests=2, extra=GREEDY),
)
WARM_UP: Final = Load("warm-up", SLOTS, answer_chunks=8, requests=1, extra=GREEDY)


def measured(
    children: Children, client: Path, model: Path, rounds: int, progress: Callable[[str], None]
) -> tuple[list[Load], list[Sample]]:
    """Start the fleet with this model, measure both ways, one round after the other. Raises `StartFailed`."""
    fleet = paths.puna(children, model.resolve(), slots=SLOTS, engine=None, name=NAME, env={})
    straight = _straight(fleet)
    _pin(fleet)
    for way in (straight, fleet):
        run(client, way, WARM_UP, 0)
    return list(LOADS), list(_rounds(client, (straight, fleet), rounds, progress))


def _rounds(client: Path, ways: Iterable[paths.Way], rounds: int, progress: Callable[[str], None]) -> Iterator[Sample]:
    for load in LOADS:
        for number in range(rounds):
            for way in ways:
                progress(f"{load.name}, round {number + 1} of {rounds}: {way.name}")
                yield run(client, way, load, number)


def _straight(fleet: paths.Way) -> paths.Way:
    """The fleet's own engine, asked without the fleet: its port and key are in its command and environment."""
    pids = fleet.groups["engine"]
    engine = psutil.Process(pids[0])
    port, key = paths.engine_port(engine), engine.environ().get("LLAMA_API_KEY", "")
    assert port is not None  # it is how the engine was found
    return paths.Way("direct", port, {"engine": pids}, (), model=NAME, key=key)


def _pin(fleet: paths.Way) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise StartFailed("a real engine is measured on a core of its own: this needs two cores")
    for name, pids in fleet.groups.items():
        for pid in pids:
            _pin_process(pid, set(cores[:-1]) if name == "engine" else {cores[-1]})
    _pin_process(os.getpid(), {cores[-1]})


def _pin_process(pid: int, cores: set[int]) -> None:
    """All its threads; those to come inherit it, as does every child (the load client is one of ours)."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)
