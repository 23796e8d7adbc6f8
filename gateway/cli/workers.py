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

    models: tuple[LocalModel, ...]
    slots: int
    engine: Path | None
    state_dir: Path


def write_settings(options: WorkerOptions) -> Path:
    """Write the settings file of the workers into the state folder; returns its path."""
    served: list[dict[str, Any]] = [
        {"model": model.model, "path": str(model.path), "flags": dict(model.flags)} for model in options.models
    ]
    path = options.state_dir / _FILE
    # nobody comes for the engines of a fleet that ended with its terminal, so they end with their worker
    settings = {"models": served, "engine": {"orphan_grace_s": 0}}
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return path


def worker_command(name: str, settings: Path, options: WorkerOptions) -> list[str]:
    """The command line of one worker. What the environment may set too is said here, where it counts for more."""
    arguments = ["--node", name, "--config", str(settings), "--slots", str(options.slots), "--http", "127.0.0.1:0"]
    arguments += ["--engine", str(options.engine)] if options.engine else []
    arguments += ["--state-dir", str(options.state_dir / name), "--parent-pid", str(os.getpid())]
    return service_command("worker", arguments)
