"""The ways from the client to the engine: direct, through nginx, through Puna. Each is up while its context is open."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from bench.broker import nats_server
from bench.processes import Children, StartFailed, family, free_port

MODEL: Final = "fake"
LISTENING: Final = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")
PROBE_TIMEOUT_S: Final = 5.0
OUR_PID: Final = ("--parent-pid", str(os.getpid()))
"""Workers and gateways end when the bench does, however that is."""

EMPTY_GGUF: Final = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
"""A whole GGUF file with nothing in it: the fake engine reads no model."""

NGINX_CONFIGURATION: Final = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  tcp_nodelay on;
  keepalive_requests 1000000;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 300s;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Way:
    """Where to send requests, and whose CPU time is counted. `between` names the groups that are neither end."""

    name: str
    port: int
    groups: Mapping[str, tuple[int, ...]]
    between: tuple[str, ...]
    model: str = MODEL
    key: str = ""


def direct(children: Children, engine: Path, env: Mapping[str, str], name: str = "engine") -> Way:
    """The fake engine on a port of its own choice."""
    pid = children.start(name, [engine, "--host", "127.0.0.1", "--port", "0", "--alias", MODEL], env)
    port = children.wait(name, lambda: _listening_port(children.log(name)), "listening port")
    return Way("direct", port, {"engine": (pid,)}, ())


def _listening_port(log: Path) -> int | None:
    found = LISTENING.search(log.read_bytes())
    return int(found[1]) if found else None


def nginx_program() -> str | None:
    """The nginx of this machine. Debian keeps it where only root's PATH looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")


def nginx(children: Children, program: str, to: Way) -> Way:
    """nginx with one worker in front of the direct way: no buffering, connections to the engine kept."""
    port, folder = free_port(), children.folder
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX_CONFIGURATION.format(folder=folder, engine=to.port, port=port))
    pid = children.start("nginx", [program, "-p", folder, "-c", configuration])
    children.wait("nginx", lambda: _answers(f"http://127.0.0.1:{port}/health"), "answer to /health")
    pids = tuple(process.pid for process in family(pid))
    return Way("nginx", port, {"nginx": pids, **to.groups}, ("nginx",))


def puna(
    children: Children, model: Path, *, slots: int, engine: Path | None, name: str = MODEL, env: Mapping[str, str]
) -> Way:
    """nats-server, one worker with its engine, one gateway. Without `engine` the worker finds one itself."""
    nats_pid, nats_url = nats_server(children)
    worker_pid = children.start("worker", _worker(children, nats_url, f"{name}={model}", slots, engine), env)
    port = free_port()
    gateway = [sys.executable, "-m", "gateway", "--nats", nats_url, "--listen", f"127.0.0.1:{port}", *OUR_PID]
    gateway_pid = children.start("gateway", gateway, env)
    children.wait("gateway", lambda: _answers(f"http://127.0.0.1:{port}/livez"), "answer to /livez")
    children.wait("worker", lambda: _chats(f"http://127.0.0.1:{port}", name), f"answer from {name}")
    engines, workers = _engine_and_rest(worker_pid)
    groups = {"gateway": (gateway_pid,), "worker": workers, "nats-server": (nats_pid,), "engine": engines}
    return Way("puna", port, groups, ("gateway", "worker", "nats-server"), model=name)


def _engine_and_rest(worker_pid: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The engine is the descendant that listens where its own command says; guards and the like count as worker."""
    family_pids = [process.pid for process in family(worker_pid)]
    engines = tuple(process.pid for process in family(worker_pid)[1:] if engine_port(process) in _listening(process))
    if not engines:
        raise StartFailed("worker: it answers, but none of its children looks like an engine")
    return engines, tuple(pid for pid in family_pids if pid not in engines)


def engine_port(engine: psutil.Process) -> int | None:
    """The port in its command."""
    command = engine.cmdline()
    return int(command[command.index("--port") + 1]) if "--port" in command else None


def _listening(process: psutil.Process) -> set[int | None]:
    return {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}


def _worker(children: Children, nats_url: str, model: str, slots: int, engine: Path | None) -> list[str | Path]:
    argv: list[str | Path] = [sys.executable, "-m", "worker", "--nats", nats_url, "--node", "bench", "--model", model]
    argv += ["--slots", str(slots), "--http", "127.0.0.1:0", "--state-dir", children.folder / "worker", *OUR_PID]
    return argv if engine is None else [*argv, "--engine", engine]


def _answers(url: str) -> bool | None:
    """True once the URL gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT_S) as response:
            return True if response.status == 200 else None
    except (OSError, urllib.error.URLError):
        return None


def _chats(url: str, model: str) -> bool | None:
    body = {"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S * 4) as response:
            return True if response.status == 200 else None
    except (OSError, urllib.error.URLError):
        return None
