"""The bench's own programs, compiled once; skipped where there is no compiler, which nothing else needs."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.compiler import COMPILERS, native
from bench.overhead.load import Seen


def _program(name: str) -> Path:
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C compiler: the overhead bench cannot run here")
    return native(name)


@pytest.fixture(scope="session")
def engine_program() -> Path:
    return _program("engine")


@pytest.fixture
def drive() -> Callable[..., Seen]:
    """Run the load client to its end, every stream making `requests` requests."""
    program = _program("client")

    def run(port: int, *, streams: int = 1, requests: int = 1, max_tokens: int = 5) -> Seen:
        argv = [program, "--port", port, "--streams", streams, "--requests", requests, "--max-tokens", max_tokens]
        line = subprocess.run([str(part) for part in argv], input=b"", capture_output=True, check=True, timeout=60)
        return Seen.model_validate_json(line.stdout)

    return run
