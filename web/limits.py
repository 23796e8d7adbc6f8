"""What one client may cost the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

READ_PIECE_BYTES: Final = 16384
"""Input is parsed in pieces of this size, so that a client that pipelines can be made to wait between two."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one server. A client that passes one is answered with the status named here, or cut."""

    header_bytes: int = 32768
    """Request line and headers, 431."""
    headers: int = 128
    """Header lines, 431."""
    body_bytes: int = 8 << 20
    """Body, 413: from the content length before anything is read, else when the body passes it."""
    idle_s: float = 75.0
    """Between two requests; then the connection is closed."""
    header_s: float = 10.0
    """From a request's first byte to the end of its headers, 408. Also the TLS handshake."""
    body_s: float = 60.0
    """From the end of the headers to the end of the body, 408."""
    write_stall_s: float = 60.0
    """A client that takes nothing of what waits for it for this long is cut."""
    write_buffer_bytes: int = 65536
    """What may wait for a slow client before `Exchange.writable` turns false; `on_drained` at a quarter of it."""
    connections: int = 10_000
    """One more is answered 503 at once."""
    pipelined: int = 16
    """Requests of one connection that wait for their turn before its socket is no longer read."""
    linger_s: float = 5.0
    """How long a refused client's input is read and dropped, so that it sees the answer and not a reset."""
