"""The workers of `puna up`: what each is told. The model travels in a file, because its engine may need flags."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from gateway.cli.model import LocalModel
from gateway.cli.service import service_command

_FILE: Final = "worker.yaml"


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What all workers of one `puna up` have in common. `engine` None: the workers look for one."""

    model: LocalModel
    slots: int
    engine: Path | None
    state_dir: Path


def write_settings(options: WorkerOptions) -> Path:
    """Write the settings file of the workers into the state folder; returns its path."""
    model = options.model
    served: dict[str, Any] = {"model": model.model, "path": str(model.path), "flags": dict(model.flags)}
    path = options.state_dir / _FILE
    path.write_text(yaml.safe_dump({"models": [served]}, allow_unicode=True), encoding="utf-8")
    return path


def worker_command(name: str, settings: Path, options: WorkerOptions) -> list[str]:
    """The command line of one worker. What the environment may set too is said here, where it counts for more."""
    arguments = ["--node", name, "--config", str(settings), "--slots", str(options.slots), "--http", "127.0.0.1:0"]
    arguments += ["--engine", str(options.engine)] if options.engine else []
    arguments += ["--state-dir", str(options.state_dir / name), "--parent-pid", str(os.getpid())]
    return service_command("worker", arguments)
