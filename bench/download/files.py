"""One file over HTTP with ranges, by sendfile: `python -m bench.download.files FILE` prints its port, and serves."""

from __future__ import annotations

import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Any path is the file."""

    protocol_version = "HTTP/1.1"
    file: Path

    def do_GET(self) -> None:
        """All of it, or a range."""
        size = self.file.stat().st_size
        hit = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        at, end = (int(hit[1]), int(hit[2]) + 1) if hit else (0, size)
        self.send_response(206 if hit else 200)
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(end - at))
        if hit:
            self.send_header("Content-Range", f"bytes {at}-{end - 1}/{size}")
        self.end_headers()
        with self.file.open("rb") as file:
            while at < end:
                at += os.sendfile(self.connection.fileno(), file.fileno(), at, end - at)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  its name in the library
        """Nothing."""


if __name__ == "__main__":
    Handler.file = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
