"""Finds the program that serves models on this host, and proves that it runs before anything depends on it.

Order: the configured path, `LLAMA_SERVER_BIN_PATH`, PATH, well-known folders, the embedded engine. The first two are a
person's choice: if such a one does not run, that is an error and not a reason to take another in silence. Among the
rest one that sees a GPU wins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from schemas.errors import Unavailable
from worker.crashes import diagnosis, ending
from worker.enginespec import EngineBinary
from worker.flags import REFUSED_VARIABLES

log = logging.getLogger(__name__)

PROOF_TIMEOUT_S: Final = 30.0
"""For `--list-devices`: a driver's first contact with its GPU can take this long."""
BIN_VARIABLE: Final = "LLAMA_SERVER_BIN_PATH"
PROGRAM: Final = "llama-server"
EMBEDDED: Final = (sys.executable, "-m", "worker.embedded")
FOLDERS: Final = (
    "/usr/local/bin",
    "/usr/bin",
    "/opt/homebrew/bin",
    "/home/linuxbrew/.linuxbrew/bin",
    "/opt/llama.cpp/bin",
    "/opt/llama.cpp/build/bin",
    "/usr/local/llama.cpp/bin",
    "/app",
    "/snap/bin",
    "~/.local/bin",
    "~/llama.cpp/build/bin",
)
_NOT_INSTALLED: Final = 69
_DEVICE: Final = re.compile(r"^\s+([A-Za-z]+)(\d*): ", re.MULTILINE)
_BACKENDS: Final = {"mtl": "metal", "hip": "rocm"}


class EngineMissing(Unavailable):
    """No engine runs here. The message holds the one install line for this system."""

    code = "engine_missing"
    exit_code: ClassVar[int] = 69


@dataclass(frozen=True, slots=True)
class _Candidate:
    kind: Literal["llama-server", "embedded"]
    argv: tuple[str, ...]
    origin: str
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class _Unfit:
    """A candidate that does not run here; `why` is for a person. `absent`: it is just not installed."""

    why: str
    absent: bool = False


async def find_engine(configured: Path | None, environ: Mapping[str, str]) -> EngineBinary:
    """The engine to use. Raises `EngineMissing`, which says what was tried and what to install."""
    cpu_only: EngineBinary | None = None
    tried: list[str] = []
    for candidate in _candidates(configured, environ):
        proved = await _prove(candidate, environ)
        if isinstance(proved, _Unfit):
            if candidate.chosen:
                raise EngineMissing(f"{candidate.argv[0]} ({candidate.origin}): {proved.why}")
            tried += [] if proved.absent else [f"{candidate.argv[0]} ({candidate.origin}): {proved.why}"]
        elif candidate.chosen or proved.devices:
            return _found(proved, candidate)
        else:
            cpu_only = cpu_only or proved
    if cpu_only is None:
        raise EngineMissing(_missing_text(tried))
    for why in tried:
        log.warning("an engine does not run here", extra={"event": "engine_unfit", "reason": why})
    return cpu_only


def _candidates(configured: Path | None, environ: Mapping[str, str]) -> Iterator[_Candidate]:
    if configured is not None:
        yield _Candidate(PROGRAM, (str(configured.expanduser()),), "configured", chosen=True)
        return
    if named := environ.get(BIN_VARIABLE):
        yield _Candidate(PROGRAM, (str(Path(named).expanduser()),), BIN_VARIABLE, chosen=True)
        return
    seen: set[Path] = set()
    for folder, origin in _folders(environ):
        found = shutil.which(PROGRAM, path=folder)
        if found and (real := Path(found).resolve()) not in seen:
            seen.add(real)
            yield _Candidate(PROGRAM, (found,), origin)
    yield _Candidate("embedded", EMBEDDED, "embedded")


def _folders(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for folder in environ.get("PATH", "").split(os.pathsep):
        if folder:
            yield folder, "PATH"
    for folder in FOLDERS:
        yield str(Path(folder).expanduser()), "well-known folder"


async def _prove(candidate: _Candidate, environ: Mapping[str, str]) -> EngineBinary | _Unfit:
    """Run `--version` and `--list-devices`. The first load is the third proof; the engine's run loop reads that one."""
    version = await _ask(candidate.argv, "--version", environ)
    if isinstance(version, _Unfit):
        return version
    devices = await _ask(candidate.argv, "--list-devices", environ)
    if isinstance(devices, _Unfit):
        return devices
    return EngineBinary(candidate.kind, candidate.argv, _version(version), _devices(devices))


async def _ask(argv: tuple[str, ...], flag: str, environ: Mapping[str, str]) -> str | _Unfit:
    quiet = {name: value for name, value in environ.items() if name not in REFUSED_VARIABLES}
    quiet |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # numbers as NVML and the engine itself will see them
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, flag, env=quiet, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        return _Unfit(f"cannot be run: {error.strerror}", absent=isinstance(error, FileNotFoundError))
    try:
        async with asyncio.timeout(PROOF_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return _Unfit(f"gave no answer to {flag} in {PROOF_TIMEOUT_S:g} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return _verdict(process.returncode or 0, output.decode(errors="replace"), flag)


def _verdict(code: int, output: str, flag: str) -> str | _Unfit:
    if code == 0:
        return output
    lines = output.splitlines()
    known = diagnosis(lines)
    said = f"; it said: {lines[-1][:200]}" if lines and not known else ""
    return _Unfit(known or f"{flag} failed: {ending(code)}{said}", absent=code == _NOT_INSTALLED)


def _version(output: str) -> str:
    hit = re.search(r"version:\s*(\S+(?: \([^)]*\))?)", output)
    return hit[1] if hit else "unknown"


def _devices(output: str) -> tuple[str, ...]:
    """`CUDA0: …` of the engine's list as `cuda:0`, in its order."""
    listed = output.partition("Available devices:")[2]
    found = ((name.lower(), number or "0") for name, number in _DEVICE.findall(listed))
    return tuple(f"{_BACKENDS.get(name, name)}:{number}" for name, number in found if name not in ("cpu", "blas"))


def _found(binary: EngineBinary, candidate: _Candidate) -> EngineBinary:
    fields = {"event": "engine_found", "origin": candidate.origin, "engine_version": binary.version}
    log.info("engine found", extra=fields | {"devices": list(binary.devices)})
    return binary


def _missing_text(tried: list[str]) -> str:
    install = "pip install 'puna[local]'"
    if sys.platform == "darwin" and shutil.which("brew"):
        install = "brew install llama.cpp"
    found = "".join(f"\n  not usable: {one}" for one in tried)
    return f"no engine found on this host; install one: {install}{found}"
