"""What asyncio does not do with a TCP socket."""

from __future__ import annotations

import asyncio
import socket
import struct

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
