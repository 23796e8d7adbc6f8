"""Web servers that go wrong when they are told to: what the fake Hub and the fake object store share.

One `World` a program; each of its origins (ports) is a role. Any origin answers the control pages:

| page             |                                                                                     |
|------------------|-------------------------------------------------------------------------------------|
| `POST /-/faults` | a list of faults, added to those there are                                          |
| `POST /-/reset`  | no faults, nothing seen                                                             |
| `GET /-/seen`    | `requests` (role, method, path, authorization, range, if_range, status, sent, `at_s`: |
|                  | the machine's monotonic clock), `sent` (bytes a file), `tokens` (requests a token)   |

A fault: `{"kind": …, "role": glob, "match": glob of the path, "method": glob, "skip": 0, "times": null (for ever), …}`

| kind          | with                       | what happens                                                      |
|---------------|----------------------------|-------------------------------------------------------------------|
| `status`      | `status`, `retry_after`    | that status; `retry_after` as it is, `date:N` is a date in N s     |
| `delay`       | `seconds`                  | the answer begins late                                            |
| `cut`         | `after_bytes`              | the connection ends in the middle of the body                     |
| `stall`       | `after_bytes`, `seconds`   | silence in the middle of the body                                 |
| `throttle`    | `bytes_per_s`              |                                                                   |
| `whole`       |                            | a range is answered with 200 and everything                       |
| `shifted`     | `by`                       | 206, and the bytes of another place under the right Content-Range |
| `other_range` | `by`                       | 206, and honestly another range than the one asked for            |
| `short`       | `bytes`                    | 206 with fewer bytes than asked, and honestly so                  |
| `flip`        | `at`                       | one bit of the file's byte `at` is wrong                          |
| `redirect`    | `to` (URL, or an origin)   | 302 there                                                         |
| `garbage`     |                            | 200 and a body that is no JSON                                    |
| `reset`       | `phase`, `after_bytes`     | the connection is reset: `connect`, `request` (when it was read),  |
|               |                            | `head` (in its middle), `body` (after so many bytes)               |
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BLOCK = 256 << 10
BODY_FAULTS = ("cut", "stall", "throttle", "whole", "shifted", "other_range", "short", "flip", "reset")


class World:
    """What all origins of one program know together."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.origins: dict[str, str] = {}
        self.controls: dict[str, Callable[[Any], Any]] = {}
        self.reset()

    def reset(self) -> None:
        with self.lock:
            self.faults: list[dict[str, Any]] = []
            self.requests: list[dict[str, Any]] = []
            self.sent: Counter[str] = Counter()
            self.tokens: Counter[str] = Counter()

    def seen(self) -> dict[str, Any]:
        with self.lock:
            return {"requests": list(self.requests), "sent": dict(self.sent), "tokens": dict(self.tokens)}

    def add_faults(self, faults: list[dict[str, Any]]) -> None:
        with self.lock:
            self.faults += faults

    def take_faults(self, role: str, method: str, path: str) -> list[dict[str, Any]]:
        """The faults that this request has, each counted."""
        with self.lock:
            return [
                fault
                for fault in self.faults
                if _hits(fault, role, method, path) and fault.get("phase") != "connect" and _counted(fault)
            ]

    def resets_at_once(self, role: str) -> bool:
        """Whether a connection is to be reset before anything is read from it."""
        with self.lock:
            return any(
                fault.get("phase") == "connect" and _hits(fault, role, "*", "*") and _counted(fault)
                for fault in self.faults
            )

    def serve(self, roles: Mapping[str, type[Origin]], host: str = "127.0.0.1", ports: Mapping[str, int] | None = None):
        """Start all origins, say where they are on one line of JSON, and serve until SIGTERM or SIGINT."""
        servers = [_Server((host, (ports or {}).get(role, 0)), kind, role, self) for role, kind in roles.items()]
        for server in servers:
            self.origins[server.role] = f"http://{host}:{server.server_port}"
        for server in servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        over = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: over.set())
        print(json.dumps(self.origins), flush=True)
        over.wait()


def _hits(fault: dict[str, Any], role: str, method: str, path: str) -> bool:
    return (
        fnmatchcase(role, fault.get("role", "*"))
        and fnmatchcase(method, fault.get("method", "*"))
        and fnmatchcase(unquote(path), fault.get("match", "*"))
        and fault.get("times") != 0
    )


def _counted(fault: dict[str, Any]) -> bool:
    if fault.get("skip", 0) > 0:
        fault["skip"] -= 1
        return False
    if fault.get("times") is not None:
        fault["times"] -= 1
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], handler: type[Origin], role: str, world: World) -> None:
        self.role, self.world = role, world
        super().__init__(address, handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        if self.world.resets_at_once(self.role):
            reset(request)
            request.close()
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave are what these servers are for."""


@dataclass
class Body:
    """What is sent: bytes, or a file. `name` is what it is counted under."""

    name: str
    content: bytes | Path
    etag: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def blocks(self, first: int, end: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            for at in range(first, end, BLOCK):
                yield self.content[at : min(end, at + BLOCK)]
            return
        with self.content.open("rb") as file:
            file.seek(first)
            while first < end and (block := file.read(min(BLOCK, end - first))):
                first += len(block)
                yield block


class Gone(Exception):
    """The connection is to end here."""


def reset(connection: socket.socket) -> None:
    """Have its other end see ECONNRESET: a close with nothing lingering."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class Origin(BaseHTTPRequestHandler):
    """One role. A kind of server overrides `respond`."""

    protocol_version = "HTTP/1.1"
    server: _Server
    faults: list[dict[str, Any]]
    entry: dict[str, Any]

    def setup(self) -> None:
        # what is counted as sent is what the kernel took: let it be what it has sent, too
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def world(self) -> World:
        return self.server.world

    @property
    def token(self) -> str | None:
        """The bearer token that came."""
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if kind == "Bearer" else None

    def respond(self, path: str) -> None:
        """Answer a GET or HEAD: each kind of origin in its own way."""
        raise AssertionError(f"{type(self).__name__} does not say how it answers {path}")

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/-/"):
            self.json(self.world.seen() if path == "/-/seen" else {"origins": self.world.origins})
            return
        self._note()
        self.faults = self.world.take_faults(self.server.role, self.command, path)
        try:
            if not self._spoiled():
                self.respond(path)
        except (Gone, OSError):
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        given = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        controls: dict[str, Callable[[Any], Any]] = {
            "/-/faults": self.world.add_faults,
            "/-/reset": lambda _: self.world.reset(),
            **self.world.controls,
        }
        if path not in controls:
            self.refuse(405)
            return
        self.json(controls[path](given))

    def _note(self) -> None:
        self.entry = {
            "role": self.server.role,
            "method": self.command,
            "path": self.path,
            "authorization": self.headers.get("Authorization"),
            "range": self.headers.get("Range"),
            "if_range": self.headers.get("If-Range"),
            "status": None,
            "sent": 0,
            "at_s": time.monotonic(),
        }
        with self.world.lock:
            self.world.requests.append(self.entry)
            self.world.tokens[self.token or ""] += 1

    def send_response(self, code: int, message: str | None = None) -> None:
        if hasattr(self, "entry"):
            self.entry["status"] = int(code)
        super().send_response(code, message)

    def _spoiled(self) -> bool:
        """Whether a fault was the whole answer."""
        for fault in self.faults:
            if fault["kind"] == "delay":
                time.sleep(fault["seconds"])
            elif fault["kind"] == "status":
                self.refuse(fault["status"], _retry_after(fault))
                return True
            elif fault["kind"] == "redirect":
                to = self.world.origins.get(fault["to"])
                self.refuse(302, {"Location": to + self.path if to else fault["to"]})
                return True
            elif fault["kind"] == "reset" and fault["phase"] in ("request", "head"):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-" if fault["phase"] == "head" else b"")
                self._reset()
            elif fault["kind"] == "garbage":
                self.answer(200, b'{"id": "half', {"Content-Type": "application/json"})
                return True
        return False

    def json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def refuse(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.answer(status, body, headers)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A small answer, whole."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_body(self, body: Body) -> None:
        """A file, or the range of it that was asked for, with the faults that it is to have."""
        faults = {fault["kind"]: fault for fault in self.faults if fault["kind"] in BODY_FAULTS}
        asked = None if "whole" in faults else self._range(body)
        if asked is not None and asked[0] >= asked[1]:
            self.refuse(416, {"Content-Range": f"bytes */{body.size}"})
            return
        first, end = asked or (0, body.size)
        if asked is not None and "other_range" in faults:
            first = min(body.size - 1, first + faults["other_range"]["by"])
        if asked is not None and "short" in faults:
            end = min(end, first + faults["short"]["bytes"])
        self._head(body, asked is not None, first, end)
        if self.command != "HEAD":
            self._send(body, first, end, faults)

    def _range(self, body: Body) -> tuple[int, int] | None:
        hit = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        condition = self.headers.get("If-Range")
        if hit is None or (condition is not None and condition != body.etag) or hit[0] == "bytes=-":
            return None
        if not hit[1]:
            return max(0, body.size - int(hit[2])), body.size
        return int(hit[1]), min(body.size, int(hit[2]) + 1 if hit[2] else body.size)

    def _head(self, body: Body, partial: bool, first: int, end: int) -> None:
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{body.size}")
        for name, value in {"ETag": body.etag, "Accept-Ranges": "bytes", **body.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - first))
        self.end_headers()

    def _send(self, body: Body, first: int, end: int, faults: Mapping[str, dict[str, Any]]) -> None:
        shift = faults["shifted"]["by"] if "shifted" in faults else 0
        if not faults and isinstance(body.content, Path):
            self._send_fast(body, first, end)
            return
        flip, at = faults.get("flip"), first
        for block in body.blocks(min(first + shift, body.size), min(end + shift, body.size)):
            if flip is not None and at <= flip["at"] < at + len(block):
                wrong = bytearray(block)
                wrong[flip["at"] - at] ^= 1
                block = bytes(wrong)
            self._write(body, block, at - first, faults)
            at += len(block)

    def _write(self, body: Body, block: bytes, done: int, faults: Mapping[str, dict[str, Any]]) -> None:
        for kind in ("cut", "stall", "reset"):
            fault = faults.get(kind)
            if fault is not None and done <= fault["after_bytes"] < done + len(block):
                before = block[: fault["after_bytes"] - done]
                self._push(body, before)
                if kind == "cut":
                    self._break()
                if kind == "reset":
                    self._reset()
                time.sleep(fault["seconds"])
                block = block[len(before) :]
        rate = faults.get("throttle")
        step = max(1024, int(rate["bytes_per_s"] / 50)) if rate else len(block)
        for begin in range(0, len(block), step or 1):
            piece = block[begin : begin + step]
            if rate:
                time.sleep(len(piece) / rate["bytes_per_s"])
            self._push(body, piece)

    def _push(self, body: Body, piece: bytes) -> None:
        self.wfile.write(piece)
        self._count(body, len(piece))

    def _send_fast(self, body: Body, first: int, end: int) -> None:
        assert isinstance(body.content, Path)
        with body.content.open("rb") as file:
            while first < end:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), first, min(4 << 20, end - first))
                if not sent:
                    raise Gone
                first += sent
                self._count(body, sent)

    def _count(self, body: Body, count: int) -> None:
        with self.world.lock:
            self.world.sent[body.name] += count
            self.entry["sent"] += count

    def _reset(self) -> None:
        reset(self.connection)
        self.connection.close()
        raise Gone

    def _break(self) -> None:
        self.wfile.flush()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        raise Gone

    def log_message(self, *_: Any) -> None:
        """Nothing: what was asked is at /-/seen."""


def _retry_after(fault: dict[str, Any]) -> dict[str, str]:
    given = fault.get("retry_after")
    if given is None:
        return {}
    if str(given).startswith("date:"):
        return {"Retry-After": formatdate(time.time() + float(str(given)[5:]), usegmt=True)}
    return {"Retry-After": str(given)}
