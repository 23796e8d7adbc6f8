"""The command as a person types it: quick help, exit codes, messages that say what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.cli.app import run
from gateway.cli.exits import MEANINGS, CliError, code_of
from gateway.cli.ports import check_free, free_port
from schemas.errors import BusUnavailable, DeadlineExceeded, ModelNotFound, NotAllowed

ROOT = Path(__file__).parents[2]
NOWHERE = "nats://127.0.0.1:1"


HEAVY = ("asyncio", "bus", "huggingface_hub", "nats", "pydantic", "rich", "ssl", "uvloop", "web", "yaml")


def test_help_comes_at_once_because_it_imports_nothing_heavy() -> None:
    """Under a quarter of a second on an idle machine; what would make it slow is what is checked."""
    code = f"""
import contextlib, io, sys
from gateway.cli.app import run
with contextlib.redirect_stdout(io.StringIO()) as told:
    assert run(["--help"]) == 0
assert "Commands" in told.getvalue()
print(",".join(name for name in {HEAVY!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


OWN = ("up", "ps", "nodes", "ls", "run", "doctor", "status", "load", "unload", "restart", "drain", "explain", "logs")
OWN += ("events", "pull", "rm", "show", "tasks", "cancel", "dlq ls", "dlq show", "dlq redrive", "dlq drop")
OWN += ("model apply", "model get", "model edit", "model delete")


@pytest.mark.parametrize("command", OWN)
def test_every_command_has_its_own_help(command, capsys) -> None:
    assert run([*command.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert "usage" in told.lower() and f"puna {command}" in told


def test_a_service_has_the_help_of_its_own_process(puna) -> None:
    done = puna("gateway", "--help")
    assert (done.returncode, "--listen" in done.stdout) == (0, True)


def test_every_command_is_in_the_manual() -> None:
    manual = (ROOT / "docs/cli.md").read_text()
    assert [command for command in OWN if f"puna {command}" not in manual] == []


def test_the_exit_codes_are_in_the_help_and_in_the_manual(puna) -> None:
    said, manual = " ".join(puna("--help").stdout.split()), (ROOT / "docs/cli.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"{code} {meaning}" in said
        assert f"| {code} |" in manual


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFound("x"), 3),
        (NotAllowed("x"), 4),
        (DeadlineExceeded("x"), 5),
        (BusUnavailable("x"), 69),
        (CliError("x", 6), 6),
        (ValueError("x"), 1),
    ],
)
def test_errors_become_exit_codes(error, code) -> None:
    assert code_of(error) == code


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("ps", "-o", "xml"),
        ("up", "--workers", "0"),
        ("up", "-o", "yaml"),
        ("up", "--engine", "/nonexistent/llama-server"),
        ("run",),
    ],
)
def test_wrong_usage_is_2(arguments) -> None:
    assert run(arguments) == 2


def test_without_nats_the_lists_end_with_69_and_say_what_to_do(puna) -> None:
    done = puna("ps", "--nats", NOWHERE)
    assert (done.returncode, done.stdout) == (69, "")
    assert "puna up" in done.stderr


def test_without_a_gateway_run_says_what_to_do(puna) -> None:
    done = puna("run", "smollm2", "hello", "--gateway", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert "puna up" in done.stderr


def test_doctor_goes_on_past_what_is_wrong_and_gives_each_remedy(puna) -> None:
    done = puna("doctor", "--nats", NOWHERE, "--gateway", "http://127.0.0.1:1", "-o", "json")
    assert done.returncode == 69
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert {"python", "nats-server", "engine", "cache folder", "state folder", "nats", "gateway"} <= set(checks)
    assert all(check["remedy"] for check in checks.values() if check["result"] != "ok")


def test_a_fleet_without_nodes_is_red(puna, nats_server) -> None:
    done = puna("status", "--nats", nats_server.url, "--gateway", "http://127.0.0.1:1", "-o", "json")
    assert done.returncode == 1
    checks = {check["name"]: check["result"] for check in json.loads(done.stdout)}
    assert checks == {"nats": "ok", "jetstream": "ok", "permissions": "ok", "nodes": "fail", "gateway": "fail"}


def test_an_empty_fleet_is_said_on_stderr_and_is_an_empty_list_for_programs(puna, nats_server) -> None:
    assert "puna worker" in puna("ps", "--nats", nats_server.url).stderr
    assert json.loads(puna("ps", "--nats", nats_server.url, "-o", "json").stdout) == []


def test_a_model_that_does_not_exist_stops_up_before_anything_runs(puna, tmp_path) -> None:
    done = puna("up", "--port", "0", "--model", "missing.gguf", "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 3
    assert "give the path of a GGUF file" in done.stderr


def test_a_port_that_is_taken_is_said_with_the_remedy(puna, tmp_path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = puna("up", "--port", str(port), "--state-dir", str(tmp_path / "state"))
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
    assert "--port 0" in done.stderr


def test_a_free_port_is_free() -> None:
    port = free_port()
    assert check_free(port) == port


@pytest.mark.parametrize("module", ["worker.cli", "gateway.serve"])
def test_a_traceback_of_a_service_shows_no_secret(module) -> None:
    code = f"""
import importlib
service = importlib.import_module({module!r})
def fail(*given):
    password = given[0].nats.password.get_secret_value()
    raise RuntimeError(f"broken with a password of {{len(password)}} characters")
service._serve = fail
service.main()
"""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "NATS_USER": "u", "NATS_PASSWORD": "hunter2-hunter2"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, timeout=60)
    assert done.returncode == 1
    assert "password of 15 characters" in done.stderr
    assert "hunter2" not in done.stderr
