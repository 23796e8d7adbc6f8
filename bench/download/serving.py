"""The file server of these measurements, run for a while."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(file: Path) -> Generator[str]:
    """`bench.download.files` for this file: its URL."""
    argv = [sys.executable, "-m", "bench.download.files", str(file)]
    server = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}/model.gguf"
    finally:
        server.kill()
        server.wait()
