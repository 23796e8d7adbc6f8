"""Where models come from: what every source tells and does, and how one is found.

A source lists what is there, pinned to a revision, and signs the requests for the bytes. It moves none itself:
`worker.transfer` does. Sources of other distributions are found by the entry-point group `puna.sources`: the name is
the scheme, the object a class without arguments that is a `Source`.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, Protocol, cast, runtime_checkable
from urllib.parse import urlsplit

from schemas.errors import InvalidRequest
from schemas.source import SourceRef, check_inner
from worker.sources.errors import (
    Ambiguous,
    BadListing,
    Changed,
    Corrupt,
    Denied,
    DiskFailed,
    Gated,
    NoSpace,
    NotThere,
    SourceError,
    Stalled,
    Throttled,
    Unreachable,
    Unsupported,
)

__all__ = [
    "ENTRY_POINTS",
    "Algorithm",
    "Ambiguous",
    "BadListing",
    "Changed",
    "Corrupt",
    "Denied",
    "Digest",
    "DiskFailed",
    "Gated",
    "Listing",
    "NoSpace",
    "NotThere",
    "RemoteFile",
    "Role",
    "Secrets",
    "Signed",
    "Source",
    "SourceError",
    "Stalled",
    "Throttled",
    "Unreachable",
    "Unsupported",
    "Want",
    "find_source",
    "origin_of",
    "shown_url",
]

log = logging.getLogger(__name__)

ENTRY_POINTS: Final = "puna.sources"
Algorithm = Literal["sha256", "md5", "git-sha1"]
"""`git-sha1`: of git's blob object, which is the length in a header and then the content."""
Role = Literal["model", "shard", "projector", "draft", "config", "other"]
_HEX_DIGITS: Final[Mapping[str, int]] = {"sha256": 64, "md5": 32, "git-sha1": 40}
_PORTS: Final = {"https": 443, "http": 80}
_OWN: Final[Mapping[str, str]] = {
    "hf": "worker.sources.hub:Hub",
    "s3": "worker.sources.s3:ObjectStore",
    "oci": "worker.sources.s3:ObjectStore",
    "http": "worker.sources.http:Web",
    "https": "worker.sources.http:Web",
    "file": "worker.sources.local:Folder",
    "local": "worker.sources.local:Folder",
    "pvc": "worker.sources.local:Folder",
    "peer": "worker.sources.peer:Peer",
    "vendor": "worker.sources.local:Vendor",
}
"""Ours, as pyproject.toml registers them: for an installation whose metadata does not tell of them."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A checksum; `hex` is in lower case. Raises `ValueError` for one that cannot be."""

    algorithm: Algorithm
    hex: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]+", self.hex) or len(self.hex) != _HEX_DIGITS.get(self.algorithm):
            raise ValueError(f"{self.hex[:70]!r} is no {self.algorithm}")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `sha256:<hex>` or `md5:<hex>`. Raises `ValueError`."""
        algorithm, _, hex_digits = text.partition(":")
        return cls(cast(Algorithm, algorithm), hex_digits.lower())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a source. Raises `BadListing` for a name that could lead out of the model's folder.

    `url` is without credentials; `etag` as the server wrote it, quotes included, where it identifies the content that
    `url` leads to.
    """

    path: str
    url: str
    size_bytes: int | None = None
    digest: Digest | None = None
    etag: str | None = None
    role: Role = "other"

    def __post_init__(self) -> None:
        try:
            check_inner(self.path, self.path)
        except InvalidRequest as error:
            raise BadListing(error.message) from error
        if self.size_bytes is not None and self.size_bytes < 0:
            raise BadListing(f"{self.path}: a size of {self.size_bytes} bytes cannot be")


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source has for a want, pinned. `main` is the path of the file that an engine loads.

    `revision` is of the content: a commit, an ETag, size and time. With `in_place` the files are served from `root`
    where they are, and are never deleted; a `vendor://` has neither files nor root.
    """

    ref: SourceRef
    revision: str
    files: tuple[RemoteFile, ...]
    main: str
    in_place: bool = False
    root: Path | None = None

    @property
    def size_bytes(self) -> int | None:
        """Of all files together; None where one does not say."""
        sizes = [file.size_bytes for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def file(self, path: str) -> RemoteFile:
        """The file of that name. Raises `KeyError`."""
        return next((file for file in self.files if file.path == path), None) or _missing(path)


@dataclass(frozen=True, slots=True)
class Want:
    """What is to be had of a source, the node's variant already taken into account."""

    ref: SourceRef
    revision: str | None = None
    """Wins over the one in `ref`."""
    quant: str | None = None
    """Wins over the one in `ref`."""
    files: tuple[str, ...] = ()
    """Names or patterns; empty: chosen by rule."""
    checksums: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By file name; `*` for a source of one file: `sha256:<hex>` or `md5:<hex>`."""
    token_ref: str | None = None
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def checksum(self, path: str) -> Digest | None:
        """What the caller said that a file is."""
        text = self.checksums.get(path) or self.checksums.get("*")
        return Digest.parse(text) if text else None


@dataclass(frozen=True, slots=True)
class Signed:
    """A request for the bytes of a file: `headers` are for the origin of `url` alone, and dropped at a redirect to
    another. Neither they nor the query are in its text."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def __str__(self) -> str:
        return shown_url(self.url)


class Secrets(Protocol):
    """Reads credentials where the node keeps them. What it returns goes into a header and nowhere else."""

    async def read(self, reference: str, *, key: str | None = None) -> str:
        """Of `env:NAME`, `file:/path` or `secret:NAME`; `key` names a part of a secret with several. Raises `Denied`,
        which names the reference, if there is none."""
        ...

    def variable(self, *names: str) -> str | None:
        """The first of these environment variables that is set and not empty."""
        ...


@runtime_checkable
class Source(Protocol):
    """One kind of place. Made once, used by many at the same time."""

    async def resolve(self, ref: SourceRef, *, want: Want, secrets: Secrets) -> Listing:
        """What there is. Tries again by itself what is worth it; raises a `SourceError`."""
        ...

    async def requests(self, file: RemoteFile, *, want: Want, secrets: Secrets) -> Signed:
        """Where a ranged GET for the file goes, now: asked anew for each try, as signatures expire. Raises a
        `SourceError`."""
        ...


def find_source(scheme: str, own: Mapping[str, Source] = MappingProxyType({})) -> Source:
    """The source for a scheme: one that somebody else has registered, else the one in `own`, else ours. Raises
    `Unsupported`."""
    points = entry_points(group=ENTRY_POINTS)
    for point in points.select(name=scheme):
        if point.value == _OWN.get(scheme):  # ours, registered like a stranger's: `own` has it with the node's settings
            continue
        try:
            return _checked(scheme, cast(type[object], point.load()))
        except Exception as error:
            fields = {"event": "source_unusable", "scheme": scheme, "entry_point": point.value}
            log.error("source_unusable", exc_info=error, extra=fields)
    if scheme in own:
        return own[scheme]
    if scheme not in _OWN:
        known = ", ".join(sorted({*_OWN, *points.names}))
        raise Unsupported(f"{scheme}:// is not installed on this node; known are {known}", of_node=True)
    module, _, name = _OWN[scheme].partition(":")
    try:
        return _checked(scheme, getattr(importlib.import_module(module), name))
    except ImportError as error:
        text = f"{scheme}:// needs a package that is not installed: {error.name}"
        raise Unsupported(text, of_node=True) from error


def _checked(scheme: str, kind: type[object]) -> Source:
    made = kind()
    if not isinstance(made, Source):
        raise Unsupported(f"{scheme}:// is registered as {kind.__name__}, which is no Source")
    return made


def origin_of(url: str) -> str:
    """`scheme://host[:port]`, the port where it is not the scheme's own: what credentials are bound to, and the name of
    an origin in the fleet's cool-downs. Raises `ValueError`."""
    parts = urlsplit(url)
    host, usual = (parts.hostname or "").lower(), _PORTS.get(parts.scheme)
    port = parts.port if parts.port is not None else usual
    place = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{place}" if port == usual else f"{parts.scheme}://{place}:{port}"


def shown_url(url: str) -> str:
    """A URL for people: without query, fragment and user, which may hold secrets."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "a URL that cannot be read"
    place = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{place}{f':{port}' if port else ''}{parts.path}"


def _missing(path: str) -> RemoteFile:
    raise KeyError(path)
