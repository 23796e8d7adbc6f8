"""Ports of this machine."""

from __future__ import annotations

import errno
import socket

from gateway.cli.exits import USAGE, CliError


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_free(port: int) -> int:
    """The port, if it can be listened on. Raises `CliError`, which says what to do."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise _not_usable(port, error) from error
    return port


def is_free(port: int) -> bool:
    """Whether the port can be listened on now."""
    try:
        check_free(port)
    except CliError:
        return False
    return True


def _not_usable(port: int, error: OSError) -> CliError:
    if error.errno == errno.EADDRINUSE:
        return CliError(f"port {port} is taken by another program; give another with --port N, or --port 0 for any")
    if error.errno == errno.EACCES:
        return CliError(f"port {port} is for the system's services; give one above 1023 with --port N", USAGE)
    return CliError(f"port {port} cannot be used: {error.strerror}")
