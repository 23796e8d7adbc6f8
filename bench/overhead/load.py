"""One run of the load client against one way, with what every process used while the window was open."""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from pydantic import BaseModel, ConfigDict

from bench.overhead.paths import Way
from bench.processes import Cost, measure

CLIENT_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the client does. `requests` per stream, or, where that is 0, as much as fits into `seconds`."""

    name: str
    streams: int
    answer_chunks: int
    warm_up_s: float = 2.0
    seconds: float = 5.0
    requests: int = 0
    extra: str = ""
    """More members of the request's JSON object, each with a comma after it."""


class Spread(BaseModel):
    """Of many times in milliseconds; not a number where none was seen."""

    model_config = ConfigDict(frozen=True)
    count: int
    min: float = math.nan
    p50: float = math.nan
    p90: float = math.nan
    p99: float = math.nan
    max: float = math.nan


class Seen(BaseModel):
    """The client's result line."""

    model_config = ConfigDict(frozen=True)
    streams: int
    seconds: float
    chunks: int
    chunks_per_s: float
    answers: int
    reads: int
    bytes: int
    errors: dict[str, int]
    bad_status: int
    missing_done: int
    disordered: int
    first_ms: Spread
    gap_ms: Spread
    delay_ms: Spread

    @property
    def faults(self) -> int:
        """Everything that must not happen: failed requests, streams without an end, chunks lost or doubled."""
        return sum(self.errors.values()) + self.missing_done + self.disordered


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: what the client saw and what it cost."""

    way: str
    load: str
    round: int
    seen: Seen
    cost: Cost
    between: tuple[str, ...]

    def chunks_per_cpu_s(self, *names: str) -> float:
        """Chunks for each second of CPU that the named groups used together."""
        spent = sum(self.cost.cpu_s[name] for name in names)
        return self.seen.chunks / spent if spent > 0 else 0.0

    @property
    def others_share(self) -> float:
        """CPU time of strangers on this machine, in cores: what makes a run worth less."""
        return max(0.0, self.cost.machine_s - sum(self.cost.cpu_s.values())) / self.cost.at_s


class ClientFailed(Exception):
    """The load client ended without a result."""


def run(client: Path, way: Way, load: Load, number: int) -> Sample:
    """Run the load once. Raises `ClientFailed`."""
    argv = [str(client), *_arguments(way, load)]
    with _started(argv, way.key) as child:
        assert child.stdin and child.stdout and child.stderr
        groups = {**way.groups, "client": (child.pid,)}
        _await_mark(child.stderr, "window start")
        before = measure(groups)
        _await_mark(child.stderr, "window stop")
        after = measure(groups)
        result, _ = child.communicate(timeout=CLIENT_TIMEOUT_S)
    return Sample(way.name, load.name, number, Seen.model_validate_json(result), after.since(before), way.between)


def _started(argv: Sequence[str], key: str) -> subprocess.Popen[str]:
    env = {**os.environ, "BENCH_API_KEY": key}
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


def _await_mark(stderr: IO[str], mark: str) -> None:
    line = stderr.readline().strip()
    if line != mark:
        raise ClientFailed(f"the load client said {line!r} where {mark!r} was due")


def _arguments(way: Way, load: Load) -> list[str]:
    argv = ["--port", way.port, "--model", way.model, "--streams", load.streams, "--max-tokens", load.answer_chunks]
    argv += ["--warm-up", load.warm_up_s, "--seconds", load.seconds, "--requests", load.requests]
    argv += ["--extra", load.extra]
    return [str(part) for part in argv]
