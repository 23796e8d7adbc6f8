"""A download that is killed on its way and started again: bytes that are sent twice, by huggingface_hub and by Puna.

Both fetch one file of random bytes from the same small Hub (tests/fakes/hub.py), which counts what it sends and sends
no faster than told, so that there is a middle to be killed in. Each kill is a kill -9 at a part of the file's size, by
default at every twentieth of it. huggingface_hub begins anew each time: it is killed when that run has had so much.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bench.download.machine import machine
from bench.processes import measured_in

REPO: Final = "bench/model"
FILE: Final = "model-Q4_K_M.gguf"
HUB: Final = Path(__file__).parents[2] / "tests" / "fakes" / "hub.py"
POLL_S: Final = 0.005
WAYS: Final[Mapping[str, str]] = {"huggingface_hub": "bench.download.peer", "puna": "bench.download.ours"}
MIB: Final = 1 << 20
EVERY_20TH: Final = ",".join(f"{at / 20:g}" for at in range(1, 20))
TARGET: Final = 0.01
"""Of the file's size may be sent again at a restart."""

Size = Annotated[int, typer.Option(help="Of the file.", min=1)]
Rate = Annotated[int, typer.Option(help="What the Hub sends on one connection.", min=1)]
Kills = Annotated[str, typer.Option(help="Parts of the file at which to kill, with commas.")]
Ways = Annotated[str, typer.Option(help="Which ways, with commas.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of the text.")]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way's download. `again`: bytes sent above the file's size, as a part of it; and so of each restart."""

    way: str
    kills: int
    sent_bytes: int
    again: float
    a_restart: float
    seconds: float
    right: bool


class Hub:
    """The small Hub, and what it has sent."""

    def __init__(self, root: Path, bytes_per_s: int) -> None:
        argv = [sys.executable, str(HUB), "--root", str(root)]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url: str = json.loads(self.process.stdout.readline())["hub"]
        self._post("faults", [{"kind": "throttle", "role": "storage", "bytes_per_s": bytes_per_s}])

    def sent(self) -> int:
        """Bytes of the file so far."""
        with urllib.request.urlopen(f"{self.url}/-/seen") as answer:
            seen: dict[str, Any] = json.load(answer)
        return int(seen["sent"].get(f"{REPO}/{FILE}", 0))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()

    def _post(self, page: str, value: object) -> None:
        request = urllib.request.Request(f"{self.url}/-/{page}", json.dumps(value).encode(), method="POST")
        urllib.request.urlopen(request).close()


def resume(
    mib: Size = 200,
    mib_per_s: Rate = 50,
    kills: Kills = EVERY_20TH,
    ways: Ways = "huggingface_hub,puna",
    as_json: Json = False,
) -> None:
    """Fetch one file in each way, killed and started again, and print what was sent twice. Fails where bytes are wrong,
    or Puna has had more than a hundredth of the file sent again at a restart."""
    parts = sorted(float(part) for part in kills.split(","))
    with measured_in(None) as folder:
        content = _file(folder / "root", mib)
        outcomes = [_fetched(way, folder, content, parts, mib_per_s * MIB) for way in ways.split(",")]
        facts = machine(folder)
    if as_json:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))
    else:
        print("\n".join([*(_line(outcome) for outcome in outcomes), facts]))
    if not all(outcome.right and (outcome.way != "puna" or outcome.a_restart <= TARGET) for outcome in outcomes):
        raise typer.Exit(1)


def _file(root: Path, mib: int) -> Path:
    path = root / REPO / "main" / FILE
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(MIB))
    return path


def _fetched(way: str, folder: Path, content: Path, parts: Sequence[float], bytes_per_s: int) -> Outcome:
    """Each way has a Hub of its own: what is counted is its own."""
    work = folder / way
    work.mkdir()
    hub = Hub(folder / "root", bytes_per_s)
    began, size = time.monotonic(), content.stat().st_size
    try:
        for part in parts:
            _killed(way, hub, work, int(part * size))
        done = _start(way, hub, work).wait()
        sent = hub.sent()
    finally:
        hub.stop()
    right = done == 0 and _sum(work / "out") == _sum(content)
    shutil.rmtree(work)
    again = sent / size - 1
    return Outcome(way, len(parts), sent, again, again / max(len(parts), 1), time.monotonic() - began, right)


def _start(way: str, hub: Hub, work: Path) -> subprocess.Popen[bytes]:
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(work / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    argv = [sys.executable, "-m", WAYS[way], REPO, FILE, str(work)]
    return subprocess.Popen(argv, env={**os.environ, **home}, start_new_session=True, stdout=subprocess.DEVNULL)


def _killed(way: str, hub: Hub, work: Path, size: int) -> None:
    """Start, and kill when it has brought so many bytes itself or what was there before it makes up for them."""
    before, process = hub.sent(), _start(way, hub, work)
    have = before if way == "puna" else 0
    while process.poll() is None and have + hub.sent() - before < size:
        time.sleep(POLL_S)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(outcome: Outcome) -> str:
    again = f"{outcome.again:9.2%} sent again, {outcome.a_restart:8.3%} a restart"
    text = f"{again}, {outcome.sent_bytes / MIB:8.1f} MiB in all, {outcome.seconds:6.1f} s"
    return f"{outcome.way:16} {outcome.kills} kills: {text}{'' if outcome.right else '  WRONG BYTES'}"


if __name__ == "__main__":
    typer.run(resume)
