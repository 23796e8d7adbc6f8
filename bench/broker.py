"""The nats-server of a measurement."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path
from typing import cast

from bench.processes import Children, StartFailed


def nats_server(children: Children) -> tuple[int, str]:
    """Start one with JetStream on a free port; its pid and URL. Raises `StartFailed`."""
    program = shutil.which("nats-server", path=sysconfig.get_path("scripts")) or shutil.which("nats-server")
    if program is None:
        raise StartFailed("no nats-server: install the extra `local`, or nats-server itself")
    store = children.folder / "nats"
    argv = [program, "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", store, "--ports_file_dir", children.folder]
    pid = children.start("nats-server", argv)
    return pid, children.wait("nats-server", lambda: _url(children.folder, pid), "port")


def _url(folder: Path, pid: int) -> str | None:
    try:
        ports = cast(dict[str, list[str]], json.loads((folder / f"nats-server_{pid}.ports").read_text()))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return ports["nats"][0]
