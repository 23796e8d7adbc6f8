"""Files that are on the node already: `file://` is copied into the store, `local://` and `pvc://` are served where they
are and never deleted, `vendor://` is somebody else's care.

A folder is listed whole and the model's files are chosen as at a hub. No symbolic link may lead out of the folder that
was named; the files' sizes and times make the revision.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import InvalidRequest
from schemas.hubfiles import part_names, role_of
from schemas.source import SourceRef, check_inner
from worker.devices import aside
from worker.sources import BadListing, Denied, Listing, NotThere, RemoteFile, Secrets, Signed, SourceError, Want
from worker.sources.picking import pick

FILES_LIMIT: Final = 10_000
DEPTH_LIMIT: Final = 16
MOUNTS: Final = "PUNA_MOUNTS_DIR"
DEFAULT_MOUNTS: Final = "/mnt"


class Folder:
    """The source for `file`, `local` and `pvc`. `mounts`: the folder that has a folder for each claim."""

    def __init__(self, mounts: Path | None = None) -> None:
        self.mounts = mounts

    async def resolve(self, ref: SourceRef, *, want: Want, secrets: Secrets) -> Listing:
        """What is there. Raises a `SourceError`."""
        mounts = self.mounts or Path(secrets.variable(MOUNTS) or DEFAULT_MOUNTS)
        return await aside(lambda: _translated(ref, want, mounts), "source-folder")

    async def requests(self, file: RemoteFile, *, want: Want, secrets: Secrets) -> Signed:
        """The file itself."""
        return Signed(file.url)


class Vendor:
    """The source for `vendor`: nothing is known and nothing is done."""

    async def resolve(self, ref: SourceRef, *, want: Want, secrets: Secrets) -> Listing:
        """An empty listing."""
        return Listing(ref, "vendor", (), "", in_place=True)

    async def requests(self, file: RemoteFile, *, want: Want, secrets: Secrets) -> Signed:
        """Raises `NotThere`: there are no files."""
        raise NotThere(f"{want.ref.text}: the files are not this node's to fetch")


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    path: Path
    size_bytes: int
    changed_ns: int


def _translated(ref: SourceRef, want: Want, mounts: Path) -> Listing:
    try:
        return _listing(ref, want, mounts)
    except SourceError:
        raise
    except PermissionError as error:
        raise Denied(f"{ref.text}: this node may not read {error.filename}") from error
    except OSError as error:
        raise NotThere(f"{ref.text}: {error.strerror or error}", of_node=True) from error


def _listing(ref: SourceRef, want: Want, mounts: Path) -> Listing:
    """Blocks."""
    place = _place(ref, mounts)
    kind = place.stat().st_mode
    if stat.S_ISDIR(kind):
        root, found = place, {each.name: each for each in _walk(place, ref)}
        chosen = pick(tuple(found), want, ref.text)
        names, main = chosen.names, chosen.main
    elif stat.S_ISREG(kind):
        # whoever names a file means what it leads to: that is how the Hub's own cache is laid out
        root, names = place.parent, part_names(place.name)
        found, main = {name: _found(name, root / name, ref) for name in names}, names[0]
    else:
        raise NotThere(f"{ref.text}: is neither a file nor a folder", of_node=True)
    files = tuple(_remote(found[name], main, want) for name in names)
    revision = hashlib.sha256(
        repr([(f.name, f.size_bytes, f.changed_ns) for f in map(found.__getitem__, names)]).encode()
    )
    return Listing(ref, f"files-{revision.hexdigest()[:32]}", files, main, in_place=ref.in_place, root=root)


def _place(ref: SourceRef, mounts: Path) -> Path:
    """The real path. A claim's must stay inside the claim's folder."""
    if ref.scheme != "pvc":
        place = Path(ref.place)
        return place.resolve(strict=True) if place.is_dir() else place
    claim = (mounts / ref.place).resolve(strict=True)
    if claim.parent != mounts.resolve(strict=True):
        raise Denied(f"{ref.text}: the claim's folder leads out of {mounts}")
    return _inside(claim, claim / (ref.inner or ""), ref)


def _inside(root: Path, path: Path, ref: SourceRef) -> Path:
    real = path.resolve(strict=True)
    if not real.is_relative_to(root):
        raise Denied(f"{ref.text}: {path.relative_to(root)} is a link that leads out of the folder")
    return real


def _walk(root: Path, ref: SourceRef) -> Iterator[_Found]:
    count = 0
    for folder, folders, names in os.walk(root, onerror=_raise):
        here = Path(folder)
        if len(here.relative_to(root).parts) >= DEPTH_LIMIT:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            count += 1
            if count > FILES_LIMIT:
                raise BadListing(f"{ref.text}: holds more than {FILES_LIMIT} files; name the folder of the model")
            yield _file(root, here / name, ref)


def _raise(error: OSError) -> None:
    raise error


def _file(root: Path, path: Path, ref: SourceRef) -> _Found:
    _inside(root, path, ref)
    return _found(path.relative_to(root).as_posix(), path, ref)


def _found(name: str, path: Path, ref: SourceRef) -> _Found:
    try:
        check_inner(name, ref.text)
    except InvalidRequest as error:
        raise BadListing(error.message) from error
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise BadListing(f"{ref.text}: {name} is no regular file")
    return _Found(name, path, found.st_size, found.st_mtime_ns)


def _remote(found: _Found, main: str, want: Want) -> RemoteFile:
    url = found.path.as_uri()
    return RemoteFile(found.name, url, found.size_bytes, want.checksum(found.name), role=role_of(found.name, main))
