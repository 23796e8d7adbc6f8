"""Where a model's files come from, as one line of text: `hf://owner/repo@revision:Q4_K_M#file.gguf` and its kin.

| scheme                             | what it names                                                        |
|------------------------------------|----------------------------------------------------------------------|
| `hf://owner/repo[@rev][:quant][#file]` | files of a repository of the Hugging Face Hub; `owner/repo` alone too |
| `https://host/path`                | one file; `http://` too                                                |
| `s3://bucket/key`                  | one object, or all under a key that ends in `/`                        |
| `oci://n/NS/b/BUCKET/o/KEY`        | the same in Oracle's object storage, by its S3 interface               |
| `file:///path`                     | a file or folder of the node, copied into the store                    |
| `local:///path`                    | the same, served in place, and never deleted                           |
| `pvc://claim/path`                 | a mounted volume: `local://` below the node's folder for mounts        |
| `peer://node/model`                | the copy that another node has; the model's id encoded as in subjects  |
| `vendor://name`                    | somebody else looks after the files                                    |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from schemas.errors import InvalidName, InvalidRequest
from schemas.subjects import check_model_id, check_node_id, decode, encode

SOURCE_LIMIT_BYTES: Final = 2048
SCHEMES: Final = ("hf", "https", "http", "s3", "oci", "file", "local", "pvc", "peer", "vendor")
IN_PLACE: Final = frozenset(("local", "pvc", "vendor"))
"""Schemes whose files are used where they are and are not ours to delete."""

_HUB: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>[A-Za-z0-9][\w./-]{0,199}))?(?::(?P<quant>[A-Za-z0-9_.-]{1,40}))?(?:#(?P<file>.+))?",
    re.ASCII,
)
_S3: Final = re.compile(r"(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>.+)", re.DOTALL)
_OCI: Final = re.compile(
    r"n/(?P<namespace>[A-Za-z0-9_-]{1,64})/b/(?P<bucket>[A-Za-z0-9._-]{1,256})/o/(?P<key>.+)", re.DOTALL
)
_CLAIM: Final = re.compile(r"(?P<claim>[A-Za-z0-9][A-Za-z0-9.-]{0,252})(?:/(?P<path>.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SourceRef:
    """A source taken apart. `place` is the repository, URL, bucket, claim, path or node; `inner` the file, key, path or
    model in it."""

    text: str
    scheme: str
    place: str
    inner: str | None = None
    revision: str | None = None
    quant: str | None = None
    namespace: str | None = None

    @property
    def in_place(self) -> bool:
        """Its files are served where they are, and never deleted."""
        return self.scheme in IN_PLACE

    @property
    def pinned(self) -> bool:
        """The text itself says which content is meant: a commit of the Hub."""
        return self.revision is not None and re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None


def parse_source(text: str) -> SourceRef:
    """Take a source apart. Raises `InvalidRequest`, which says what a right one looks like."""
    if not text or len(text.encode(errors="replace")) > SOURCE_LIMIT_BYTES or not text.isprintable():
        raise _bad(text, f"give 1 to {SOURCE_LIMIT_BYTES} printable bytes, for example hf://owner/repo:Q4_K_M")
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "hf", text
    reader = _READERS.get(scheme)
    if reader is None:
        raise _bad(text, f"the scheme is none of {', '.join(SCHEMES)}")
    return reader(text, rest)


def check_inner(name: str, text: str) -> str:
    """A relative file name inside a source, as given. Raises `InvalidRequest` for one that could lead out of it.

    Every name that a source reports goes through here before it becomes a part of a path.
    """
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise _bad(text, f"file {name[:60]!r} has an empty part, '.', '..', a backslash or unprintable characters")
    if len(name.encode()) > 1024 or any(len(part.encode()) > 255 for part in parts):
        raise _bad(text, f"file {name[:60]!r} is longer than file systems take (255 bytes a part, 1024 in all)")
    return name


def _hub(text: str, rest: str) -> SourceRef:
    hit = _HUB.fullmatch(rest)
    if hit is None or ".." in (hit["revision"] or ""):
        raise _bad(text, "write hf://owner/repo, and if need be @revision, :QUANT and #file.gguf after it")
    file = check_inner(hit["file"], text) if hit["file"] else None
    return SourceRef(text, "hf", hit["repo"], file, hit["revision"], hit["quant"])


def _web(text: str, rest: str) -> SourceRef:
    try:
        parts = urlsplit(text)
        named, _ = parts.hostname, parts.port
    except ValueError as error:
        raise _bad(text, f"it is no URL: {error}") from error
    if not named or " " in rest:
        raise _bad(text, "write https://host/path/model.gguf")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("source: a URL must not hold a password; name it with token_ref", param="source")
    return SourceRef(text, parts.scheme, text)


def _s3(text: str, rest: str) -> SourceRef:
    hit = _S3.fullmatch(rest)
    if hit is None:
        raise _bad(text, "write s3://bucket/key, or s3://bucket/prefix/ for all below it")
    check_inner(hit["key"].removesuffix("/"), text)
    return SourceRef(text, "s3", hit["bucket"], hit["key"])


def _oci(text: str, rest: str) -> SourceRef:
    hit = _OCI.fullmatch(rest)
    if hit is None:
        raise _bad(text, "write oci://n/NAMESPACE/b/BUCKET/o/KEY")
    check_inner(hit["key"].removesuffix("/"), text)
    return SourceRef(text, "oci", hit["bucket"], hit["key"], namespace=hit["namespace"])


def _path(scheme: str) -> Callable[[str, str], SourceRef]:
    def read(text: str, rest: str) -> SourceRef:
        if not rest.startswith("/") or ".." in rest.split("/"):
            raise _bad(text, f"write {scheme}:///absolute/path, without '..'")
        return SourceRef(text, scheme, rest)

    return read


def _claim(text: str, rest: str) -> SourceRef:
    hit = _CLAIM.fullmatch(rest)
    if hit is None:
        raise _bad(text, "write pvc://claim/path")
    inner = check_inner(hit["path"], text) if hit["path"] else None
    return SourceRef(text, "pvc", hit["claim"], inner)


def _peer(text: str, rest: str) -> SourceRef:
    node, _, token = rest.partition("/")
    try:
        return SourceRef(text, "peer", check_node_id(node), check_model_id(decode(token)))
    except InvalidName as error:
        raise _bad(text, _peer_remedy(node, token)) from error


def _peer_remedy(node: str, model: str) -> str:
    """With the right text, for a model whose id was given as it is."""
    try:
        if "=" not in model:
            return f"the model's id is encoded: peer://{check_node_id(node)}/{encode(check_model_id(model))}"
    except InvalidName:
        pass  # the node's or the model's id cannot be
    return "write peer://NODE/MODEL, the model's id encoded as in subjects (owner=2Frepo)"


def _vendor(text: str, rest: str) -> SourceRef:
    if not rest:
        raise _bad(text, "write vendor://name")
    return SourceRef(text, "vendor", rest)


_READERS: Final[dict[str, Callable[[str, str], SourceRef]]] = {
    "hf": _hub,
    "https": _web,
    "http": _web,
    "s3": _s3,
    "oci": _oci,
    "file": _path("file"),
    "local": _path("local"),
    "pvc": _claim,
    "peer": _peer,
    "vendor": _vendor,
}


def _bad(text: str, remedy: str) -> InvalidRequest:
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    return InvalidRequest(f"source {shown!r}: {remedy}", param="source")
