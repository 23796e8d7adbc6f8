"""A web server of files that goes wrong: `python tests/fakes/fileserver.py --root DIR` prints its origins as JSON.

Origins: `files`, `elsewhere` (a stranger with the same files), `tls` (a certificate that nobody has signed; with
`--trusted PEM` that file's key and certificate). The faults of `faulty.py`, and of these kinds, for bodies:

| kind       | with          | what happens                                                        |
|------------|---------------|---------------------------------------------------------------------|
| `etag`     | `value`       | the content has this ETag; `null`: none                             |
| `replaced` | `by`          | another file of DIR under the same name, with an ETag of its own    |
| `chunked`  |               | no length, chunks; ranges are not known                             |
| `closing`  |               | no length, the end of the connection is the end; ranges not known   |
| `longer`   | `by`          | so many bytes more than announced                                   |
| `drip`     | `seconds`     | one byte of the head each so many seconds                           |
| `endless`  |               | headers without an end                                              |
| `deaf`     | `seconds`     | the connection is taken and nothing is said                         |
| `range`    | `text`        | this Content-Range, whatever is sent                                |
| `encoded`  |               | says that it is gzip                                                |
| `size`     | `by`          | a HEAD is told that it has so many bytes more                       |
"""

from __future__ import annotations

import argparse
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote

sys.path.insert(0, str(Path(__file__).parent))

from faulty import Body, Gone, Origin, World


class Files(Origin):
    """The files of a folder."""

    root = Path()

    def respond(self, path: str) -> None:
        kinds = {fault["kind"]: fault for fault in self.faults}
        if "deaf" in kinds:
            time.sleep(kinds["deaf"]["seconds"])
            raise Gone
        if "endless" in kinds:
            self._endless()
        name = unquote(path).lstrip("/")
        file = self.root / kinds["replaced"]["by"] if "replaced" in kinds else self.root / name
        if not file.is_file():
            self.refuse(404)
            return
        stat = file.stat()
        etag = kinds["etag"]["value"] if "etag" in kinds else f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
        body = Body(name, file, etag)
        if "drip" in kinds:
            self._drip(kinds["drip"]["seconds"])
        elif "chunked" in kinds or "closing" in kinds:
            self._lengthless(body, chunked="chunked" in kinds)
        else:
            self.send_body(body)
            if "longer" in kinds and self.command == "GET":
                self.wfile.write(b"x" * kinds["longer"]["by"])

    def send_header(self, keyword: str, value: str) -> None:
        kinds = {fault["kind"]: fault for fault in getattr(self, "faults", [])}
        if keyword == "ETag" and value is None:
            return
        if keyword == "Content-Range" and "range" in kinds:
            value = kinds["range"]["text"]
        if keyword == "Content-Length" and "size" in kinds and self.command == "HEAD":
            value = str(int(value) + kinds["size"]["by"])
        super().send_header(keyword, value)
        if keyword == "ETag" and "encoded" in kinds:
            super().send_header("Content-Encoding", "gzip")

    def _endless(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1 << 20):
            self.wfile.write(b"X-Header-%d: %s\r\n" % (number, b"y" * 100))
        raise Gone

    def _drip(self, seconds: float) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n":
            self.wfile.write(bytes([byte]))
            time.sleep(seconds)

    def _lengthless(self, body: Body, *, chunked: bool) -> None:
        self.send_response(200)
        self.send_header("ETag", body.etag)
        self.send_header("Transfer-Encoding", "chunked") if chunked else self.send_header("Connection", "close")
        self.end_headers()
        faults = {fault["kind"]: fault for fault in self.faults}
        done = 0
        for block in body.blocks(0, body.size) if self.command == "GET" else ():
            if "cut" in faults and done + len(block) > faults["cut"]["after_bytes"]:
                self._break()
            done += len(block)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            self._count(body, len(block))
        if chunked and self.command == "GET":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = not chunked


class Sealed(Files):
    """Over TLS."""

    certificate = Path()

    def setup(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()

    def _send_fast(self, body: Body, first: int, end: int) -> None:
        for block in body.blocks(first, end):
            self._push(body, block)


def self_signed(folder: Path) -> Path:
    """A key and a certificate for the loopback, in one file."""
    file = folder / "sealed.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    made = subprocess.run([*argv, "-keyout", "-", "-out", "-"], capture_output=True, check=True)
    file.write_bytes(made.stdout)
    return file


class Sites(World):
    """`tls` is told as https."""

    def serve_all(self) -> None:
        original = self.origins

        class Told(dict[str, str]):
            def __setitem__(self, role: str, url: str) -> None:
                super().__setitem__(role, url.replace("http://", "https://") if role == "tls" else url)

        self.origins = Told(original)
        self.serve({"files": Files, "elsewhere": Files, "tls": Sealed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--trusted", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Files.root = given.root
        Sealed.certificate = given.trusted or self_signed(Path(folder))
        Sites().serve_all()


if __name__ == "__main__":
    main()
