"""A Hub and an object store that run, and secrets that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from worker.sources.secrets import NodeSecrets


@pytest.fixture
def start(tmp_path: Path, fake: Callable[[str], ModuleType]) -> Iterator[Callable[..., Any]]:
    """`start("hub.py", root, …flags)` → a running fake, as `tests/fakes/started.py` has it."""
    running: list[Any] = []

    def make(program: str, root: Path, *flags: str) -> Any:
        running.append(fake("started").Started(program, root, *flags))
        return running[-1]

    yield make
    for each in running:
        each.stop()


@pytest.fixture
def files(tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    """`files({"o/r/main/m.gguf": b"…"})` → a folder with these files."""

    def write(content: Mapping[str, bytes]) -> Path:
        root = tmp_path / "root"
        for name, data in content.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return root

    return write


@pytest.fixture
def secrets(tmp_path: Path) -> Callable[..., NodeSecrets]:
    """`secrets(HF_TOKEN="…")` → the node's secrets with that environment and no other."""
    return lambda **environ: NodeSecrets(tmp_path / "state", environ=environ)
