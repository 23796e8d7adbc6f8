"""Where what is, below the root of a store. Plain names; nothing is opened here.

store.json                          the format's version
lock                                held by whoever changes something
blobs/sha256-<hex>                  each content once, read-only
partial/<key>/{data,journal,lock}   a file on its way
partial/<key>/placed                its content has become the blob that is named in it
partial/<key>/for/<model>           a model that wants it: the last one that is deleted takes it along
models/<model>/<revision>/<file>    a view: hard links to blobs, else relative symbolic ones
models/<model>/<revision>/manifest.json   what the view is; written last: without it there is no view
models/<model>/current              → the revision that is served
retained/<model>                    the manifest of a model that was deleted and whose files were to stay
trash/<n>                           on its way out: whatever moved here is gone
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Final

from schemas.errors import InvalidName, InvalidRequest
from schemas.source import check_inner
from schemas.subjects import decode, encode
from worker.sources import BadListing, Digest, Listing, RemoteFile
from worker.store.disk import Place

FORMAT: Final = 1
STORE: Final[Place] = ("store.json",)
LOCK: Final[Place] = ("lock",)
BLOBS: Final[Place] = ("blobs",)
PARTIAL: Final[Place] = ("partial",)
MODELS: Final[Place] = ("models",)
RETAINED: Final[Place] = ("retained",)
TRASH: Final[Place] = ("trash",)
FOLDERS: Final = (BLOBS, PARTIAL, MODELS, RETAINED, TRASH)
MANIFEST: Final = "manifest.json"
CURRENT: Final = "current"
_OWN: Final = frozenset((MANIFEST,))
_BLOB: Final = re.compile(r"sha256-([0-9a-f]{64})")
_REVISION: Final = re.compile(r"[A-Za-z0-9_-]{0,40}\.[0-9a-f]{16}")


def blob(sha256: str) -> Place:
    """Of a content."""
    return (*BLOBS, f"sha256-{sha256}")


def blob_of(name: str) -> str | None:
    """The content behind a blob's name."""
    hit = _BLOB.fullmatch(name)
    return hit[1] if hit else None


def model_folder(model: str) -> Place:
    """Of a model. Raises `InvalidName`."""
    return (*MODELS, encode(model))


def model_of(token: str) -> str | None:
    """The model behind a folder's name; None for a folder that is not ours."""
    try:
        return decode(token)
    except InvalidName:
        return None


def retained(model: str) -> Place:
    """Of a model whose files stay. Raises `InvalidName`."""
    return (*RETAINED, encode(model))


def revision_token(revision: str, files: Iterable[tuple[str, str]], main: str) -> str:
    """The folder's name of a view: the same for the same revision and (path, sha256) of its files, and for no other.

    It can never be `current`: it has a dot.
    """
    content = json.dumps([revision, sorted(files), main]).encode()
    return f"{re.sub('[^A-Za-z0-9_-]', '-', revision)[:40]}.{hashlib.sha256(content).hexdigest()[:16]}"


def is_revision(name: str) -> bool:
    """Whether a folder is a view, by its name."""
    return _REVISION.fullmatch(name) is not None


def partial_key(listing: Listing, file: RemoteFile) -> str:
    """The folder's name of a file on its way: by content where that is known, so that two models share it."""
    if file.digest is not None and file.digest.algorithm == "sha256":
        return f"sha256-{file.digest.hex}"
    told = [listing.ref.text, listing.revision, file.path, file.size_bytes, file.etag, str(file.digest or "")]
    return f"source-{hashlib.sha256(json.dumps(told).encode()).hexdigest()}"


def mark(key: str, model: str) -> Place:
    """That a model wants a file on its way. Raises `InvalidName`."""
    return (*PARTIAL, key, "for", encode(model))


def inner(path: str) -> Place:
    """A file's place within its view. Raises `BadListing` for a name that leads out, or that is one of ours."""
    try:
        place = tuple(check_inner(path, path).split("/"))
    except InvalidRequest as error:
        raise BadListing(error.message) from error
    if place[0] in _OWN or any(part.startswith(".new-") for part in place):
        raise BadListing(f"{path!r} is a name that the store uses itself")
    return place


def check_paths(paths: Iterable[str]) -> None:
    """That files can lie in one folder: none twice, none that is a folder of another. Raises `BadListing`."""
    places = [inner(path) for path in paths]
    known = set(places)
    if len(known) != len(places):
        raise BadListing("the source names a file twice")
    folders = {place[:depth] for place in places for depth in range(1, len(place))}
    if folders & known:
        raise BadListing("the source names something as a file and as a folder")


def blob_target(depth: int, sha256: str) -> str:
    """The relative symbolic link from a file so many folders down in its view to its blob."""
    return "/".join(("..",) * (3 + depth)) + f"/blobs/sha256-{sha256}"


def known_sha256(digest: Digest | None) -> str | None:
    """The SHA-256 that a source tells, if it does."""
    return digest.hex if digest is not None and digest.algorithm == "sha256" else None
