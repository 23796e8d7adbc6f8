"""One download of a large file by Puna: is its memory flat? Its file has holes: at its server it takes no disk."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bench.download.machine import machine
from bench.download.serving import serving
from bench.processes import measured_in

MIB: Final = 1 << 20
GROWTH_LIMIT_BYTES: Final = 64 << 20

Sizes = Annotated[str, typer.Option(help="Of the files, in MiB, with commas.")]
Folder = Annotated[Path | None, typer.Option("--dir", help="Write here; unset: the temporary folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")]


@dataclass(frozen=True, slots=True)
class Alone:
    """One download. `growth_bytes`: of the most memory that the process ever had, over what it had before."""

    megabytes: float
    seconds: float
    cpu_s: float
    growth_bytes: int


def single(sizes: Sizes = "64,2048", folder: Folder = None, as_json: Json = False) -> None:
    """Fetch files of these sizes, each in a process of its own, print the memory, and fail where it is not flat."""
    with measured_in(folder) as work:
        found = [_fetched(work, int(size) * MIB) for size in sizes.split(",")]
        facts = machine(work)
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
    else:
        print("\n".join([*(_line(each) for each in found), facts]))
    if any(each.growth_bytes > GROWTH_LIMIT_BYTES for each in found):
        raise typer.Exit(1)


def _fetched(work: Path, size: int) -> Alone:
    file, digest = work / "holes.gguf", hashlib.sha256()
    with file.open("wb") as made:
        made.truncate(size)
    for _ in range(size // MIB):
        digest.update(bytes(MIB))
    with serving(file) as url:
        told = alone(url, size, digest.hexdigest(), work)
    file.unlink()
    return Alone(size / 1e6, told["seconds"], told["cpu_s"], told["growth_bytes"])


def alone(url: str, size: int, sha256: str, work: Path) -> dict[str, Any]:
    """What `bench.download.alone` says of one download, whose file is gone again."""
    argv = [sys.executable, "-m", "bench.download.alone", url, str(size), sha256, str(work)]
    told = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)
    (work / "data").unlink()
    (work / "journal").unlink()
    return told


def _line(found: Alone) -> str:
    rate, cost = found.megabytes / found.seconds, found.cpu_s * 1000 / found.megabytes
    over = "" if found.growth_bytes <= GROWTH_LIMIT_BYTES else "  NOT FLAT"
    grown = found.growth_bytes / MIB
    return f"{found.megabytes:6.0f} MB: {rate:.0f} MB/s, {cost:.2f} CPU s/GB, memory +{grown:.0f} MiB{over}"
