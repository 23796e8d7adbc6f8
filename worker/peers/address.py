"""Where this node's HTTP can be reached, told to those who can reach it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from web.address import is_loopback
from worker.devices import aside
from worker.transfer.journal import boot_id

_NAMESPACE: Final = Path("/proc/self/ns/net")
_ANY: Final = frozenset(("0.0.0.0", "::"))  # noqa: S104  what to look for, not what to listen on


def host_id() -> str:
    """The same for processes that share a loopback: one run of one machine, and in it one network namespace."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink(_NAMESPACE)  # noqa: PTH115  it names no path
    return f"{boot_id() or socket.gethostname()} {namespace}".strip()


class Address:
    """`advertise` wins over what was listened on. `servers` are those of NATS: the way to them shows our own address
    where the HTTP listens on all."""

    def __init__(self, advertise: str | None, servers: tuple[str, ...], host: str | None = None) -> None:
        self.host: str = host or host_id()
        self._advertise = advertise.rstrip("/") if advertise else None
        self._servers = servers
        self._near: str | None = None
        self._far: str | None = None

    async def listens(self, host: str, port: int) -> None:
        """The HTTP is up."""
        inside = host if is_loopback(host) else ("::1" if host == "::" else "127.0.0.1")
        self._near = _url(inside if host in _ANY or is_loopback(host) else host, port)
        outside = await aside(self._outward, "peers-address") if host in _ANY else host
        self._far = None if outside is None or is_loopback(outside) else _url(outside, port)

    def url_for(self, host: str) -> str | None:
        """What somebody on that machine may use; None: nothing leads from there to here."""
        if self._near is None:
            return None
        return self._advertise or (self._near if host == self.host else self._far)

    def _outward(self) -> str | None:
        """Our address on the way to NATS. Nothing is sent."""
        for server in self._servers:
            parts = urlsplit(server)
            with suppress(OSError):
                family, kind, proto, _, place = socket.getaddrinfo(
                    parts.hostname, parts.port or 4222, type=socket.SOCK_DGRAM
                )[0]
                with socket.socket(family, kind, proto) as probe:
                    probe.connect(place)
                    return str(probe.getsockname()[0])
        return None


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
