"""`puna doctor`: each thing that Puna needs, looked at, with the remedy where it is wrong. And `puna status`."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from gateway.cli.exits import FAILURE, MISSING, OK, CliError
from gateway.cli.folders import cache_dir, default_state_dir, shown
from gateway.cli.httpclient import GatewayHttp
from gateway.cli.nats_server import find_nats_server, version_of
from gateway.cli.nodes import connected, read_nodes
from gateway.cli.service import service_environment
from gateway.cli.target import Target
from schemas.errors import PunaError
from schemas.node import Heartbeat

if TYPE_CHECKING:
    from bus.connection import Bus

Result = Literal["ok", "warn", "fail"]
_PYTHON: Final = (3, 11)
_DISK_WANTED_BYTES: Final = 2_000_000_000
_ENGINE_ASK_S: Final = 20.0
_NOTICES: Final = """
import json
from worker import accelerators
from worker.cgroup import survey
from worker.limits import LimitSettings, notices
print(json.dumps({"devices": accelerators.notices(), "limits": notices(survey(), LimitSettings())}))
"""
_ILLEGAL_INSTRUCTION: Final = (-4, 132)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `remedy` says what to do; empty where nothing is wrong."""

    name: str
    result: Result
    found: str
    remedy: str = ""
    missing: bool = False
    """NATS or the engine is what is wrong: exit code 69."""

    def data(self) -> dict[str, Any]:
        """For `-o json`."""
        return {name: value for name, value in asdict(self).items() if name != "missing"}


def exit_code(checks: Sequence[Check]) -> int:
    """What the command ends with."""
    failed = [check for check in checks if check.result == "fail"]
    if any(check.missing for check in failed):
        return MISSING
    return FAILURE if failed else OK


async def doctor(target: Target) -> list[Check]:
    """All checks, this machine's first."""
    local = [check_python(), check_nats_server(), await asyncio.to_thread(check_engine), *check_disks()]
    local += await asyncio.to_thread(check_host)
    return [*local, *await check_fleet(target)]


def check_python() -> Check:
    """The interpreter."""
    version = tuple(sys.version_info[:3])
    shown_version = ".".join(map(str, version))
    if version < _PYTHON:
        return Check("python", "fail", shown_version, "Puna needs Python 3.11 or later")
    return Check("python", "ok", f"{shown_version} at {shown(Path(sys.executable))}")


def check_nats_server() -> Check:
    """The program that `puna up` starts. Elsewhere NATS may run on another machine, so it is no failure."""
    try:
        program = find_nats_server()
    except CliError as error:
        return Check("nats-server", "warn", "none for `puna up`", error.message)
    return Check("nats-server", "ok", f"{'.'.join(map(str, version_of(program)))} at {shown(program)}")


def check_engine() -> Check:
    """An engine that a worker on this machine would find."""
    configured = os.environ.get("LLAMA_SERVER_BIN_PATH")
    found = configured or shutil.which("llama-server")
    if found:
        return _check_llama_server(found)
    if importlib.util.find_spec("xllamacpp") is not None:
        return Check("engine", "ok", "embedded (xllamacpp)")
    remedy = 'install llama.cpp so that `llama-server` is on PATH, or `pip install "puna[local]"` for the embedded one'
    return Check("engine", "fail", "none", remedy, missing=True)


def _check_llama_server(program: str) -> Check:
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_ENGINE_ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("engine", "fail", f"{program}: {error}", "check LLAMA_SERVER_BIN_PATH and PATH", missing=True)
    text = (said.stderr + said.stdout).strip()
    if said.returncode in _ILLEGAL_INSTRUCTION:
        return Check(
            "engine", "fail", f"{program} is built for another CPU", "install a build for this one", missing=True
        )
    if said.returncode != 0:
        last = (text.splitlines() or ["it says nothing"])[-1]
        return Check("engine", "fail", f"{program} does not run: {last}", "install what it names", missing=True)
    version = next((line for line in text.splitlines() if line.startswith("version")), "unknown version")
    return Check("engine", "ok", f"llama-server, {version}, at {program}")


def check_host() -> list[Check]:
    """What a worker here could not use, or not enforce. Asked in a process of its own: a driver's library that ends
    its process must not end this one."""
    command = [sys.executable, "-P", "-c", _NOTICES]
    environ = service_environment()
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_ENGINE_ASK_S, check=True, env=environ)
        notices: dict[str, list[str]] = json.loads(said.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return [Check("devices", "warn", f"they cannot be looked at: {error}", "see the log of the worker")]
    remedies = {"devices": "nothing to do; engines run on the other devices", "limits": "see docs/configuration.md"}
    checks = [Check(name, "warn", text, remedies[name]) for name, texts in notices.items() for text in texts]
    return checks or [Check("limits", "ok", "the limits of engines can be enforced here")]


def check_disks() -> list[Check]:
    """Room where models and state go."""
    folders = {"cache": cache_dir(), "state": default_state_dir()}
    return [_check_disk(name, folder) for name, folder in folders.items()]


def _check_disk(name: str, folder: Path) -> Check:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        variable = f"PUNA_{name.upper()}_DIR"
        return Check(f"{name} folder", "fail", f"{shown(there)} cannot be written", f"set {variable} to one that can")
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free at {shown(folder)}"
    if free < _DISK_WANTED_BYTES:
        return Check(f"{name} folder", "warn", found, "make room: models are large")
    return Check(f"{name} folder", "ok", found)


async def check_fleet(target: Target) -> list[Check]:
    """NATS and what is behind it, then the gateway."""
    try:
        settings = target.nats_settings()
        async with connected(settings) as bus:
            reached = Check("nats", "ok", f"connected to {settings.url}")
            behind = [await check_jetstream(bus), await check_allowed(bus), *check_nodes(await read_nodes(bus))]
    except (PunaError, CliError) as error:
        remedy = "start a fleet with `puna up`, or say where NATS is with --nats URL or NATS_URL"
        reached, behind = Check("nats", "fail", error.message, remedy, missing=True), []
    return [reached, *behind, await asyncio.to_thread(check_gateway, target)]


async def check_jetstream(bus: Bus) -> Check:
    """JetStream is on for this account."""
    try:
        await bus.js_api("INFO")
    except PunaError as error:
        return Check(
            "jetstream", "fail", error.message, "turn JetStream on: `jetstream {}` in its config", missing=True
        )
    return Check("jetstream", "ok", "on")


async def check_allowed(bus: Bus) -> Check:
    """This user may watch the fleet."""
    from bus.permissions import check_permissions

    bucket = bus.names.bucket_nodes
    try:
        denied = await check_permissions(
            bus, publish=[f"$JS.API.STREAM.INFO.KV_{bucket}"], subscribe=[f"$KV.{bucket}.>"]
        )
    except PunaError as error:
        return Check("permissions", "warn", error.message, "NATS could not be asked; see deploy/nats/puna.conf")
    if denied:
        return Check("permissions", "fail", "; ".join(map(str, denied)), "allow it as in deploy/nats/puna.conf")
    return Check("permissions", "ok", "this user may watch the fleet")


def check_nodes(nodes: Sequence[Heartbeat]) -> list[Check]:
    """Somebody serves, and no engine is down."""
    if not nodes:
        return [Check("nodes", "fail", "none", "start one: puna worker --nats URL --model NAME=PATH")]
    crashed = [(node.node, engine) for node in nodes for engine in node.engines if engine.state == "crashed"]
    checks = [
        Check("engine state", "fail", f"{engine.model} on {name} crashed: {engine.reason}", f"see the log of {name}")
        for name, engine in crashed
    ]
    ready = sum(engine.state == "ready" for node in nodes for engine in node.engines)
    found = f"{len(nodes)} up, {ready} engine{'' if ready == 1 else 's'} ready"
    return [
        Check("nodes", "ok" if ready else "warn", found, "" if ready else "see `puna ps` for what they wait for"),
        *checks,
    ]


def check_gateway(target: Target) -> Check:
    """The HTTP address."""
    try:
        gateway = GatewayHttp(target.gateway_url(), target.key())
    except CliError as error:
        return Check("gateway", "fail", error.message, "give http://HOST:PORT")
    status = gateway.status("/readyz")
    if status == 0:
        return Check(
            "gateway", "fail", f"none at {gateway.url}", "start one: puna gateway --nats URL, or name it: --gateway"
        )
    if status != 200:
        return Check(
            "gateway", "fail", f"{gateway.url} is not ready (HTTP {status})", f"ask why: curl {gateway.url}/readyz"
        )
    return Check("gateway", "ok", gateway.url)
