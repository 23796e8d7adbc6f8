"""A whole fleet for a test: `puna up` as its users start it, with real processes and the real small model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httptools  # noqa: F401  # the fleet needs it; fail here, with a clear name, if the install is broken
import openai
import psutil
import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Fleet:
    """A running fleet and what its one line of JSON said."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]
    state_dir: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def url(self) -> str:
        return self.facts["gateway"]

    @property
    def nats(self) -> str:
        return self.facts["nats"]

    @property
    def model(self) -> str:
        return self.facts["model"]

    def client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(**({"base_url": f"{self.url}/v1", "api_key": "unused", "max_retries": 0} | options))

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.state_dir.rglob("*.log")))

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def start_fleet(state_dir: Path, *options: str, wait_s: float = 120) -> Fleet:
    state_dir.mkdir(parents=True, exist_ok=True)
    errors = (state_dir / "up.stderr").open("wb")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
    keep = {name: os.environ[name] for name in ("PUNA_CACHE_DIR",) if name in os.environ}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gateway.cli",
            "up",
            "--port",
            "0",
            "--state-dir",
            str(state_dir),
            "-o",
            "json",
            *options,
        ],
        stdout=subprocess.PIPE,
        stderr=errors,
        cwd=ROOT,
        env=environ | keep,
    )
    line = _first_line(process, wait_s)
    if not line:
        process.kill()
        text = (state_dir / "up.stderr").read_text(errors="replace")
        raise RuntimeError(f"puna up did not get ready in {wait_s} s:\n{text[-4000:]}")
    return Fleet(process, json.loads(line), state_dir)


def _first_line(process: subprocess.Popen[bytes], wait_s: float) -> bytes:
    import threading

    assert process.stdout is not None
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(wait_s)
    return found[0] if found else b""


@pytest.fixture
def make_fleet(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Fleets of a test's own, stopped at its end."""
    fleets: list[Fleet] = []

    def make(*options: str) -> Fleet:
        fleets.append(start_fleet(tmp_path / f"fleet{len(fleets)}", *options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.stop()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One fleet that tests share which do not hurt it: one worker, four slots, the real small model."""
    shared = start_fleet(tmp_path_factory.mktemp("fleet"), "--slots", "4")
    yield shared
    shared.stop()


@pytest.fixture
async def client(fleet: Fleet) -> AsyncIterator[openai.AsyncOpenAI]:
    """The OpenAI SDK, unmodified, pointed at the shared fleet."""
    async with fleet.client() as sdk:
        yield sdk


@pytest.fixture
def busy_slots(fleet: Fleet) -> Callable[..., Any]:
    """Waits until the shared fleet reports so many busy slots; returns the seconds that took."""

    async def wait_for(count: int, *, within_s: float = 5.0, of: Fleet | None = None) -> float:
        started = time.monotonic()
        while (seen := await engine_slots_busy(of or fleet)) != count:
            if time.monotonic() - started > within_s:
                raise AssertionError(f"{seen} slots are busy after {within_s} s, not {count}")
            await asyncio.sleep(0.01)
        return time.monotonic() - started

    return wait_for


async def engine_slots_busy(fleet: Fleet) -> int:
    """Busy slots as the engine itself tells: asked at its own port with its own key, past every part of ours."""
    total = 0
    for port, key in engine_endpoints(fleet):
        total += sum(1 for slot in await engine_get(port, key, "/slots") if slot["is_processing"])
    return total


def engine_endpoints(fleet: Fleet) -> list[tuple[int, str]]:
    """Port and key of every engine of the fleet, read off its process."""
    found: list[tuple[int, str]] = []
    for process in fleet.processes():
        with contextlib.suppress(psutil.Error):
            command, environ = process.cmdline(), process.environ()
            if "--port" in command and "--alias" in command:
                found.append((int(command[command.index("--port") + 1]), environ.get("LLAMA_API_KEY", "")))
    return list(dict.fromkeys(found))  # a launcher that became the engine has its flags too


async def engine_get(port: int, key: str, path: str) -> Any:
    status, body = await engine_request(port, key, "GET", path)
    assert status == 200, body
    return json.loads(body)


async def engine_request(port: int, key: str, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One plain HTTP exchange with an engine."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = (
        f"{method} {path} HTTP/1.0",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    )
    head = "\r\n".join(lines) + "\r\n\r\n"
    writer.write(head.encode() + body)
    raw = await reader.read()
    writer.close()
    status, _, rest = raw.partition(b"\r\n")
    return int(status.split()[1]), rest.partition(b"\r\n\r\n")[2]


@pytest.fixture
def engine_chat(fleet: Fleet) -> Callable[..., Any]:
    """Asks the shared fleet's engine directly."""

    async def ask(body: dict[str, Any]) -> Any:
        [(port, key)] = engine_endpoints(fleet)
        status, raw = await engine_request(port, key, "POST", "/v1/chat/completions", json.dumps(body).encode())
        assert status == 200, raw
        return json.loads(raw)

    return ask
