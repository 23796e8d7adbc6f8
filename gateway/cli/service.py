"""The services as programs: how `puna worker`, `puna gateway` and the children of `puna up` are started."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

_ROOT = Path(__file__).resolve().parents[2]


def service_command(name: str, arguments: Sequence[str]) -> list[str]:
    """The command line of a service: `worker` or `gateway`.

    `-P` keeps the folder that the user stands in off the import path: ours are everyday names, and a `worker/` or
    `schemas/` of theirs must not be taken for them.
    """
    return [sys.executable, "-P", "-m", name, *arguments]


def service_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which `service_command` finds our packages, from a checkout that is not installed as well."""
    out = dict(os.environ if environ is None else environ)
    if str(_ROOT) not in (*site.getsitepackages(), site.getusersitepackages()):
        rest = out.get("PYTHONPATH")
        out["PYTHONPATH"] = f"{_ROOT}{os.pathsep}{rest}" if rest else str(_ROOT)
    return out


def replace_by_service(name: str, arguments: Sequence[str]) -> NoReturn:
    """Become the service: same process id, so that supervisors and signals reach it directly."""
    command = service_command(name, arguments)
    os.execve(command[0], command, service_environment())  # noqa: S606  no shell wanted: the argv is ours
