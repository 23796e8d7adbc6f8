"""A small object store with S3's interface: `python tests/fakes/objects.py --root DIR` prints its URL, and serves.

    DIR/BUCKET/KEY…            the objects; no signature is needed for a bucket with a file `.public`
    DIR/BUCKET/.listed.json    all optional: names (further keys in listings) · multipart (keys whose ETag is no md5)

Spoken are ListObjectsV2 with pages, HEAD and GET with ranges, path style. Signatures (version 4, in headers or in the
query) are computed again and compared: `--key ID:SECRET`, repeated. Faults are those of `faulty.py`; `elsewhere` is a
second origin, for redirects.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from faulty import Body, Origin, World


class Objects(World):
    """All buckets under a folder."""

    def __init__(self, root: Path, keys: Sequence[str], page: int) -> None:
        super().__init__()
        self.root, self.page = root, page
        self.keys = dict(key.split(":", 1) for key in keys)

    def told(self, bucket: str) -> dict[str, Any]:
        path = self.root / bucket / ".listed.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def keys_of(self, bucket: str) -> list[str]:
        folder = self.root / bucket
        files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted([name for name in files if not name.startswith(".")] + self.told(bucket).get("names", []))

    def path(self, bucket: str, key: str) -> Path | None:
        """Of an object that is there."""
        try:
            path = self.root / bucket / key
            return path if path.is_file() and ".." not in key.split("/") else None
        except (OSError, ValueError):
            return None

    def etag(self, bucket: str, key: str) -> str:
        path = self.path(bucket, key)
        digest = hashlib.md5(path.read_bytes() if path else b"").hexdigest()
        return f'"{digest}-3"' if key in self.told(bucket).get("multipart", ()) else f'"{digest}"'


class Store(Origin):
    """The origin `objects`."""

    world: Objects

    def respond(self, path: str) -> None:
        bucket, _, key = unquote(path[1:]).partition("/")
        folder = self.world.root / bucket
        if refusal := self._refusal(folder):
            self._error(403, refusal)
        elif not bucket or not folder.is_dir():
            self._error(404, "NoSuchBucket")
        elif not key:
            self._list(bucket)
        else:
            self._object(bucket, key)

    def _object(self, bucket: str, key: str) -> None:
        if (path := self.world.path(bucket, key)) is None:
            self._error(404, "NoSuchKey")
            return
        modified = {"Last-Modified": formatdate(path.stat().st_mtime, usegmt=True)}
        self.send_body(Body(f"{bucket}/{key}", path, self.world.etag(bucket, key), modified))

    def _list(self, bucket: str) -> None:
        asked = dict(parse_qsl(urlsplit(self.path).query))
        after, prefix = asked.get("continuation-token") or asked.get("start-after", ""), asked.get("prefix", "")
        keys = [key for key in self.world.keys_of(bucket) if key.startswith(prefix) and key > after]
        page = keys[: self.world.page]
        more = len(keys) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        inner = "".join(self._entry(bucket, key) for key in page)
        self._xml(
            200, f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{inner}</ListBucketResult>"
        )

    def _entry(self, bucket: str, key: str) -> str:
        path = self.world.path(bucket, key)
        size, modified = (path.stat().st_size, path.stat().st_mtime) if path else (3, time.time())
        date = datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        etag = escape(self.world.etag(bucket, key), {'"': "&quot;"})
        return (
            f"<Contents><Key>{escape(key)}</Key><LastModified>{date}</LastModified><ETag>{etag}</ETag>"
            f"<Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )

    def _refusal(self, folder: Path) -> str | None:
        """Why the caller may not, by the rules of S3."""
        query = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        header = self.headers.get("Authorization")
        if header is not None and "X-Amz-Signature" in query:
            return "InvalidArgument"
        if header is None and "X-Amz-Signature" not in query:
            return None if (folder / ".public").exists() else "AccessDenied"
        return self._of_query(query) if header is None else self._of_header(header)

    def _of_query(self, query: Mapping[str, str]) -> str | None:
        begun = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if begun.timestamp() + int(query["X-Amz-Expires"]) < time.time():
            return "ExpiredToken"
        signed = query["X-Amz-SignedHeaders"].split(";")
        given = query["X-Amz-Signature"]
        return self._compared(query["X-Amz-Credential"], query["X-Amz-Date"], signed, "UNSIGNED-PAYLOAD", given)

    def _of_header(self, header: str) -> str | None:
        kind, _, rest = header.partition(" ")
        parts = dict(part.strip().split("=", 1) for part in rest.split(","))
        if kind != "AWS4-HMAC-SHA256":
            return "AccessDenied"
        date, payload = self.headers["x-amz-date"], self.headers.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        signed = parts["SignedHeaders"].split(";")
        return self._compared(parts["Credential"], date, signed, payload, parts["Signature"])

    def _compared(self, credential: str, date: str, signed: Sequence[str], payload: str, given: str) -> str | None:
        access, _, scope = credential.partition("/")
        if (secret := self.world.keys.get(access)) is None:
            return "InvalidAccessKeyId"
        key = f"AWS4{secret}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        canonical = hashlib.sha256(self._canonical(signed, payload).encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{date}\n{scope}\n{canonical}"
        right = hmac.new(key, text.encode(), "sha256").hexdigest()
        return None if hmac.compare_digest(right, given) else "SignatureDoesNotMatch"

    def _canonical(self, signed: Sequence[str], payload: str) -> str:
        split = urlsplit(self.path)
        pairs = parse_qsl(split.query, keep_blank_values=True)
        kept = sorted((quote(n, safe="-_.~"), quote(v, safe="-_.~")) for n, v in pairs if n != "X-Amz-Signature")
        query = "&".join(f"{name}={value}" for name, value in kept)
        headers = "".join(f"{name}:{(self.headers.get(name) or '').strip()}\n" for name in signed)
        path = quote(unquote(split.path), safe="/-_.~")
        return f"{self.command}\n{path}\n{query}\n{headers}\n{';'.join(signed)}\n{payload}"

    def _error(self, status: int, code: str) -> None:
        self._xml(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")

    def _xml(self, status: int, text: str) -> None:
        body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode("utf-8", "replace")
        self.answer(status, body, {"Content-Type": "application/xml"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--key", action="append", default=[], help="ID:SECRET that may read all")
    parser.add_argument("--page", type=int, default=1000, help="keys on one page of a listing")
    args = parser.parse_args()
    Objects(args.root, args.key, args.page).serve({"objects": Store, "elsewhere": Store})


if __name__ == "__main__":
    main()
