"""What asyncio does not do with a TCP socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def keep_kernel_buffer_small(transport: asyncio.Transport, size: int) -> None:
    """Otherwise the kernel takes megabytes for a client that reads nothing, and nobody sees that it does not."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None and sock.family != socket.AF_UNIX and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)


def reset(transport: asyncio.Transport) -> None:
    """End the connection so that the peer sees an error and not an end."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()


def write_at_once(transport: asyncio.Transport, data: bytes) -> None:
    """As `transport.write`, but the bytes leave before this returns, if the socket takes them.

    uvloop writes at the end of the loop's turn, after all else that is due: the peer could have begun by then. For a
    plain TCP connection.
    """
    sock: socket.socket | None = transport.get_extra_info("socket")
    taken = 0
    if sock is not None and sys.platform != "win32" and not transport.is_closing():
        taken = _written(sock.fileno(), data) if not transport.get_write_buffer_size() else 0
    if taken < len(data):
        transport.write(data[taken:])


def _written(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data)
    except OSError:
        return 0  # it is full, or broken: the transport waits, or tells its protocol
