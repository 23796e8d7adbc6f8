"""Bytes a second to the disk, checked, against `curl -o` from the same server; and what it costs in memory.

The two take turns within a round, and ratios are made between runs of one round. curl neither checks nor syncs: beside
its own time stands the one after which its file is on the disk as ours is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer

from bench.download.machine import machine
from bench.download.serving import serving
from bench.download.single import GROWTH_LIMIT_BYTES, alone
from bench.processes import measured_in

MB: Final = 1_000_000
BLOCK: Final = 1 << 20
TARGET: Final = 0.8

Sizes = Annotated[str, typer.Option(help="Of the files, in MB, with commas.")]
Rounds = Annotated[int, typer.Option(help="How often each is done.", min=1)]
Folder = Annotated[Path | None, typer.Option("--dir", help="Write here; unset: the temporary folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")]


@dataclass(frozen=True, slots=True)
class Round:
    """One file by both. Seconds; `synced_s`: curl's until its file is on the disk."""

    curl_s: float
    synced_s: float
    puna_s: float
    puna_cpu_s: float
    growth_bytes: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the rounds. Ratios above 1: Puna is faster."""

    megabytes: int
    curl_mb_per_s: float
    synced_mb_per_s: float
    puna_mb_per_s: float
    to_curl: float
    to_synced: float
    cpu_s_per_gb: float
    growth_mib: float


def throughput(sizes: Sizes = "100,1000", rounds: Rounds = 5, folder: Folder = None, as_json: Json = False) -> None:
    """Measure, print, and fail where the memory is not flat."""
    curl = shutil.which("curl")
    if curl is None:
        raise typer.BadParameter("there is no curl on this machine")
    with measured_in(folder) as work:
        found = [_measured(curl, work, int(size), rounds) for size in sizes.split(",")]
        facts = machine(work)
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
    else:
        print("\n".join([*(_line(each) for each in found), facts]))
    if any(each.growth_mib > GROWTH_LIMIT_BYTES >> 20 for each in found):
        raise typer.Exit(1)


def _measured(curl: str, work: Path, megabytes: int, rounds: int) -> Figures:
    file, sha256 = _content(work, megabytes)
    with serving(file) as url:
        rounds_ = [
            _round(curl, url, file.stat().st_size, sha256, work, puna_first=bool(at % 2)) for at in range(rounds)
        ]
    file.unlink()
    return _figures(megabytes, rounds_)


def _content(work: Path, megabytes: int) -> tuple[Path, str]:
    path, digest, left = work / "model.gguf", hashlib.sha256(), megabytes * MB
    with path.open("wb") as file:
        while left:
            block = os.urandom(min(BLOCK, left))
            file.write(block)
            digest.update(block)
            left -= len(block)
        os.fsync(file.fileno())
    return path, digest.hexdigest()


def _round(curl: str, url: str, size: int, sha256: str, work: Path, *, puna_first: bool) -> Round:
    """Who goes first changes from round to round."""
    told = alone(url, size, sha256, work) if puna_first else None
    curl_s, synced_s = _by_curl(curl, url, work / "got")
    told = told or alone(url, size, sha256, work)
    return Round(curl_s, synced_s, told["seconds"], told["cpu_s"], told["growth_bytes"])


def _by_curl(curl: str, url: str, place: Path) -> tuple[float, float]:
    began = time.perf_counter()
    subprocess.run([curl, "-s", "-o", place, url], check=True)
    curl_s = time.perf_counter() - began
    with place.open("rb") as file:
        os.fdatasync(file.fileno())
    synced_s = time.perf_counter() - began
    place.unlink()
    return curl_s, synced_s


def _figures(megabytes: int, rounds: Sequence[Round]) -> Figures:
    return Figures(
        megabytes,
        median(megabytes / each.curl_s for each in rounds),
        median(megabytes / each.synced_s for each in rounds),
        median(megabytes / each.puna_s for each in rounds),
        median(each.curl_s / each.puna_s for each in rounds),
        median(each.synced_s / each.puna_s for each in rounds),
        median(each.puna_cpu_s * 1000 / megabytes for each in rounds),
        max(each.growth_bytes for each in rounds) / (1 << 20),
    )


def _line(found: Figures) -> str:
    met = "" if found.to_curl >= TARGET else f"   below {TARGET}"
    return (
        f"{found.megabytes} MB: curl {found.curl_mb_per_s:.0f} MB/s, synced {found.synced_mb_per_s:.0f} · "
        f"puna, checked and synced {found.puna_mb_per_s:.0f} = {found.to_curl:.2f} of curl, {found.to_synced:.2f} of "
        f"synced · {found.cpu_s_per_gb:.2f} CPU s/GB · memory +{found.growth_mib:.0f} MiB{met}"
    )
