"""What starting an engine takes: its command line, its environment, its key.

Facts behind it: `--ctx-size` is shared by the slots, so it is `context_tokens * slots`. Command lines can be read by
every user of the host, so the key goes through the environment, which both kinds of engine read.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from worker.enginespec import EngineBinary, EngineSpec
from worker.flags import REFUSED_VARIABLES, flag_name, profile_arguments
from worker.spawn import TAG_VARIABLE

HOST: Final = "127.0.0.1"
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
class Command:
    """All that starting takes. `key` and `tag` are new for each start."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    key: str
    tag: str


def command(binary: EngineBinary, spec: EngineSpec, port: int, environ: Mapping[str, str]) -> Command:
    """The command that serves `spec` on `port`. Raises `FlagRefused`."""
    key, tag = secrets.token_urlsafe(32), secrets.token_hex(8)
    return Command(
        tuple(engine_argv(binary, spec, port)), engine_environment(environ, spec, key=key, tag=tag), port, key, tag
    )
