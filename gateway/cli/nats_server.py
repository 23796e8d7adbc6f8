"""The nats-server of `puna up`: which program, and the configuration it is given."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.cli.exits import MISSING, CliError

_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
_ASK_S: Final = 10.0
_INSTALL: Final = 'install it with `pip install "puna[local]"`, or take it from https://nats.io/download'
_USER: Final = "puna"

_CONFIG: Final = """\
# Written by `puna up`; a new one each time.
server_name: puna-up
listen: {listen}
pid_file: {pid_file}
ping_interval: "5s"
ping_max: 2
logfile_size_limit: 16MB
authorization {{ user: {user}, password: {password} }}
jetstream {{
  store_dir: {store}
  # Limits, not reservations: what the fleet's streams may use at most.
  max_memory_store: 8GB
  max_file_store: 8GB
}}
"""


@dataclass(frozen=True, slots=True)
class NatsServer:
    """A server to be started: its command, and the URL, with credentials, that clients connect to."""

    command: list[str]
    url: str
    port: int


def find_nats_server() -> Path:
    """The program: of this environment, else of PATH. Raises `CliError` if there is none or it is too old."""
    beside = Path(sys.executable).parent / "nats-server"
    found = beside if beside.is_file() else shutil.which("nats-server")
    if found is None:
        raise CliError(f"nats-server is not on this machine: {_INSTALL}", MISSING)
    version = version_of(Path(found))
    if not good_enough(version):
        shown = ".".join(map(str, version)) or "unknown"
        raise CliError(f"{found} is version {shown}; Puna needs 2.14.0 (or 2.12.7) and later: {_INSTALL}", MISSING)
    return Path(found)


def version_of(program: Path) -> tuple[int, ...]:
    """What `--version` says; empty if the program does not run."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    hit = _VERSION.search(said.stdout)
    return tuple(int(part) for part in hit.groups()) if hit else ()


def good_enough(version: tuple[int, ...]) -> bool:
    """Whether a server has what Puna uses (prioritized consumers: 2.12) and no known way around authorisation."""
    return version >= (2, 14, 0) or (2, 12, 7) <= version < (2, 13, 0)


def prepare(program: Path, state_dir: Path, port: int) -> NatsServer:
    """Write the configuration, for the user's eyes only, and return what to start. Loopback, a fresh password."""
    folder = state_dir / "nats"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = secrets.token_hex(24)
    config = folder / "nats.conf"
    config.unlink(missing_ok=True)
    config.touch(mode=0o600)
    config.write_text(
        _CONFIG.format(
            listen=json.dumps(f"127.0.0.1:{port}"),
            pid_file=json.dumps(str(folder / "nats.pid")),
            store=json.dumps(str(folder)),
            user=_USER,
            password=json.dumps(password),
        )
    )
    return NatsServer([str(program), "-c", str(config)], f"nats://{_USER}:{password}@127.0.0.1:{port}", port)
