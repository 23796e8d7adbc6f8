"""What starting an engine takes: its command line, its environment, its key.

Facts behind it: `--ctx-size` is shared by the slots, so it is `context_tokens * slots`. Command lines can be read by
every user of the host, so the key goes through the environment, which both kinds of engine read.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from worker.enginespec import EngineBinary, EngineSpec
from worker.flags import REFUSED_VARIABLES, flag_name, profile_arguments
from worker.minder import TAG_VARIABLE

HOST: Final = "127.0.0.1"
_PACKAGES: Final = Path(__file__).resolve().parents[1]
"""Where the embedded engine finds our packages: it does not run in the folder in which the worker was started."""
_SECRET = re.compile(r"^(PUNA_|NATS_|AWS_|AZURE_|GOOGLE_|OTEL_)|TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY|PRIVATE_KEY")


def default_threads() -> int:
    """Threads for engines: one core fewer than this process may use. Engine threads wait for each other at barriers, so
    another busy process on one of their cores halves them all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1)


def engine_argv(binary: EngineBinary, spec: EngineSpec, port: int) -> list[str]:
    """The whole command line. Raises `FlagRefused`."""
    argv = [*binary.argv, "--host", HOST, "--port", str(port), "--model", str(spec.path), "--alias", spec.model]
    if spec.context_tokens is not None:
        argv += ["--ctx-size", str(spec.context_tokens * spec.slots)]
    argv += ["--parallel", str(spec.slots), "--metrics", "--slots", "--no-webui"]
    names = {flag_name(name) for name in spec.flags}
    if "threads" not in names:
        argv += ["--threads", str(spec.threads or default_threads())]
    if "device" not in names and binary.devices and all(device.startswith("cpu") for device in spec.devices):
        argv += ["--device", "none"]
    return argv + list(profile_arguments(spec.flags))


def engine_environment(environ: Mapping[str, str], spec: EngineSpec, *, key: str, tag: str) -> dict[str, str]:
    """What the engine sees: the worker's environment without its secrets, the profile's, and the engine's own key.

    The key travels here because a command line can be read by every user of the host.
    """
    kept = {
        name: value for name, value in environ.items() if not _SECRET.search(name) and name not in REFUSED_VARIABLES
    }
    kept |= {name: value for name, value in spec.environment.items() if name not in REFUSED_VARIABLES}
    return kept | {"LLAMA_API_KEY": key, TAG_VARIABLE: tag}


@dataclass(frozen=True, slots=True)
class Confinement:
    """What is put on an engine's process before its program runs. What cannot be had is said in the engine's log."""

    rlimits: Mapping[str, int] = field(default_factory=dict[str, int])
    """By the system's names without `RLIMIT_`, in its units: `{"data": bytes, "nofile": files}`. The limit of this
    process is never exceeded."""
    nice: int | None = None
    """Added to the worker's own; more is less urgent."""
    cgroup: str | None = None
    """Folder of a cgroup (v2) to join."""
    scratch: str | None = None
    """Folder to run in; `TMPDIR` points there too."""

    def order(self) -> dict[str, str]:
        """For the minder."""
        order = {f"rlimit_{name.lower().removeprefix('rlimit_')}": str(value) for name, value in self.rlimits.items()}
        order |= {"nice": str(self.nice)} if self.nice else {}
        order |= {"cgroup": self.cgroup} if self.cgroup else {}
        return order | ({"scratch": self.scratch} if self.scratch else {})


UNCONFINED: Final = Confinement()


@dataclass(frozen=True, slots=True)
class Command:
    """All that starting takes. `key` and `tag` are new for each start."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    key: str
    tag: str
    confinement: Confinement = UNCONFINED


def command(
    binary: EngineBinary,
    spec: EngineSpec,
    port: int,
    environ: Mapping[str, str],
    confinement: Confinement = UNCONFINED,
) -> Command:
    """The command that serves `spec` on `port`. Raises `FlagRefused`."""
    key, tag = secrets.token_urlsafe(32), secrets.token_hex(8)
    environment = engine_environment(environ, spec, key=key, tag=tag)
    if binary.kind == "embedded":
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_PACKAGES), environment.get("PYTHONPATH"))))
    argv = engine_argv(binary, spec, port)
    return Command(tuple(_anchored(argv) if confinement.scratch else argv), environment, port, key, tag, confinement)


def _anchored(argv: list[str]) -> list[str]:
    """The files of a command line by their whole paths, for it will run in another folder."""
    before = ["", *argv]
    return [
        str(Path(word).absolute()) if flag != "--alias" and not word.startswith("-") and Path(word).is_file() else word
        for flag, word in zip(before, argv, strict=False)
    ]
