"""Where a server listens, as an operator writes it. Pure."""

from __future__ import annotations

import ipaddress


def split_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, `[IPV6]:PORT` or `:PORT` (all addresses). Raises `ValueError`, which says what to write."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f"{text!r} is no address; write HOST:PORT, for example 127.0.0.1:8080")
    return host or "0.0.0.0", int(port)  # noqa: S104  no host means every address, as `:8080` does elsewhere


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
