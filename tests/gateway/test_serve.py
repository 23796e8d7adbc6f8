"""`puna-gateway` as a process, and its settings."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.serve import settings_from
from schemas.config import ConfigError

ROOT = Path(__file__).parents[2]
WAIT_S = 20


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
    return kept | {"PYTHONPATH": str(ROOT)} | more


@pytest.fixture(scope="module", autouse=True)
def without_nats() -> Iterator[subprocess.Popen[str]]:
    """A gateway that looks for NATS in vain, for ten seconds: begun with the first test, looked at by the last."""
    command = [sys.executable, "-m", "gateway", "--nats", "nats://127.0.0.1:1", "--listen", "127.0.0.1:0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(), cwd="/")
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def launch(nats_server: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Factory: a gateway process; the last argument may be environment variables."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "gateway", "--nats", nats_server.url, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(**environ), cwd="/")
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_it_says_where_it_listens_and_ends_on_sigterm(launch, tmp_path) -> None:
    state = tmp_path / "gateway.json"
    process = launch("--listen", "127.0.0.1:0", "--state-file", str(state))
    told = json.loads(process.stdout.readline())
    assert told["pid"] == process.pid
    assert json.loads(state.read_text()) == told
    with urllib.request.urlopen(f"{told['url']}/readyz", timeout=5) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert any(json.loads(line)["event"] == "listening" for line in errors.splitlines())


def test_off_loopback_without_a_key_it_refuses_and_says_what_to_do(launch) -> None:
    process = launch("--listen", "0.0.0.0:0")
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert "--api-keys-file" in errors
    assert "PUNA_API_KEYS" in errors


def test_off_loopback_with_a_key_it_serves_those_who_have_it(launch) -> None:
    process = launch("--listen", "0.0.0.0:0", PUNA_API_KEYS="one,team:two")
    told = json.loads(process.stdout.readline())
    url = f"http://127.0.0.1:{told['port']}/v1/models"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=5)
    assert refused.value.code == 401
    request = urllib.request.Request(url, headers={"x-api-key": "two"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        assert json.load(answer) == {"object": "list", "data": []}


def test_it_ends_when_its_parent_does(launch) -> None:
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = launch("--listen", "127.0.0.1:0", "--parent-pid", str(parent.pid))
    assert process.stdout.readline()
    parent.kill()
    parent.wait()
    process.communicate(timeout=WAIT_S)
    assert not psutil.pid_exists(process.pid)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lissten: 127.0.0.1:1\n", "listen"),
        ("listen: nowhere\n", "HOST:PORT"),
        ("tries: many\n", "tries"),
        ("- 1\n", "mapping"),
    ],
)
def test_a_wrong_setting_is_named_with_its_line(tmp_path, text: str, words: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        settings_from(file, {}, {})


def test_the_command_line_beats_the_environment_beats_the_file(tmp_path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("listen: 127.0.0.1:1\nrequest_timeout_s: 5\nnats: {url: nats://file:1, prefix: filed}\n")
    environ = {
        "PUNA_LISTEN": "127.0.0.1:2",
        "NATS_URL": "nats://user:pw@env:1",
        "PUNA_CORS_ORIGINS": "https://a, https://b",
    }
    given = {"listen": "127.0.0.1:3", "nats": {"url": None}}
    settings = settings_from(file, environ, given)
    assert settings.address == ("127.0.0.1", 3)
    assert settings.request_timeout_s == 5
    assert (settings.nats.url, settings.nats.prefix, settings.nats.user) == ("nats://env:1", "filed", "user")
    assert settings.nats.password is not None
    assert settings.nats.password.get_secret_value() == "pw"
    assert settings.cors_origins == ["https://a", "https://b"]


def test_without_nats_the_exit_code_is_69(without_nats) -> None:
    _, errors = without_nats.communicate(timeout=WAIT_S)
    assert without_nats.returncode == 69
    assert "nats" in errors.lower()


def test_the_service_manager_hears_when_requests_can_be_taken_and_when_it_ends(launch, tmp_path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.settimeout(WAIT_S)
        address = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "300000"}
        process = launch("--listen", "127.0.0.1:0", **address)
        assert [manager.recv(100), manager.recv(100), manager.recv(100)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        process.send_signal(signal.SIGTERM)
        while (told := manager.recv(100)) == b"WATCHDOG=1":
            pass
        assert told.startswith(b"STOPPING=1\n")
