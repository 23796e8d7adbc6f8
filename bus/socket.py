"""A transport's socket, for bytes that somebody waits for."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

NO_DESCRIPTOR: Final = -1


def descriptor_of(transport: asyncio.Transport) -> int:
    """Where plain bytes can be written past the transport; `NO_DESCRIPTOR` with TLS and where sockets are no files."""
    sock = transport.get_extra_info("socket")
    if sock is None or sys.platform == "win32" or transport.get_extra_info("ssl_object") is not None:
        return NO_DESCRIPTOR
    return int(sock.fileno())


def write_at_once(transport: asyncio.Transport, descriptor: int, data: bytes) -> None:
    """As `transport.write`, but the bytes leave before this returns, if the socket takes them.

    uvloop writes at the end of the loop's turn, after all else that is due: the server could have begun by then.
    """
    taken = 0
    if descriptor != NO_DESCRIPTOR and not transport.is_closing() and not transport.get_write_buffer_size():
        taken = _written(descriptor, data)
    if taken < len(data):
        transport.write(data[taken:])


def _written(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data)
    except OSError:
        return 0  # it is full, or broken: the transport waits, or tells its protocol
