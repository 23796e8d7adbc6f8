"""A source that is slow for all together: `python -m bench.download.peersource FILE BYTES_PER_S` prints its port.

`GET /-/sent` tells how many bytes of the file it has sent.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

PIECE: Final = 256 << 10


class Rate:
    """What all connections share."""

    def __init__(self, bytes_per_s: int) -> None:
        self.sent = 0
        self._bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, count: int) -> None:
        """Wait for one's turn. A pause of all is not made up for."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / self._bytes_per_s
            wait_s = self._free_at - now
        time.sleep(wait_s)

    def count(self, count: int) -> None:
        """They are on their way."""
        with self._lock:
            self.sent += count


class Handler(BaseHTTPRequestHandler):
    """Any other path is the file."""

    protocol_version = "HTTP/1.1"
    file: Path
    rate: Rate

    def do_HEAD(self) -> None:
        """Size and ETag."""
        self._head(200, self.file.stat().st_size)

    def do_GET(self) -> None:
        """All of it, or a range."""
        if self.path == "/-/sent":
            text = str(self.rate.sent).encode()
            self._head(200, len(text))
            self.wfile.write(text)
            return
        size = self.file.stat().st_size
        hit = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        at, end = (int(hit[1]), min(int(hit[2]) + 1, size)) if hit else (0, size)
        self._head(206 if hit else 200, end - at, f"bytes {at}-{end - 1}/{size}" if hit else None)
        with self.file.open("rb") as file:
            file.seek(at)
            while at < end:
                piece = file.read(min(PIECE, end - at))
                self.rate.take(len(piece))
                self.wfile.write(piece)
                self.rate.count(len(piece))
                at += len(piece)

    def _head(self, status: int, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("ETag", '"one"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its name in the library
        """Nothing."""


if __name__ == "__main__":
    Handler.file, Handler.rate = Path(sys.argv[1]), Rate(int(sys.argv[2]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
