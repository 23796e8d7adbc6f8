"""Fixtures for the tests of the command."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class FileHost:
    """A web server with one file, that can break off and answer with errors."""

    data: bytes = b""
    break_after: list[int] = field(default_factory=list[int])
    """Bytes after which to break off, one number a request; then no more breaks."""
    errors: list[int] = field(default_factory=list[int])
    """Statuses to answer with first."""
    moved_to: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    url: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def _handler(host: FileHost) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host.asked.append({name.lower(): value for name, value in self.headers.items()})
            if host.moved_to:
                self.send_response(302)
                self.send_header("Location", host.moved_to)
                self.end_headers()
            elif host.errors:
                self.send_error(host.errors.pop(0))
            else:
                self._file()

        def _file(self) -> None:
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(host.data) - start))
            self.end_headers()
            end = start + host.break_after.pop(0) if host.break_after else len(host.data)
            self.wfile.write(host.data[start:end])

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def new_file_host() -> Iterator[Callable[..., FileHost]]:
    """Factory: `new_file_host(data=…)` → a `FileHost` that serves."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def make(**options: Any) -> FileHost:
        host = FileHost(**options)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(host))
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        host.url = f"http://127.0.0.1:{server.server_port}/model.gguf"
        return host

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def puna(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a person does, in a home of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_", "XDG_"))}
    environ = kept | {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gateway.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environ | more, timeout=60)

    return run
