"""A repository of the Hub as this machine's Hugging Face cache has it, for a node that must not ask the Hub.

The cache is huggingface_hub's: `models--OWNER--NAME/{refs/REVISION, snapshots/COMMIT/…, blobs/…}`, where a file of a
snapshot is a link to a blob that is named by its hash. Only read. All here blocks, and is for a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from schemas.errors import InvalidRequest
from schemas.source import check_inner
from worker.sources import BadListing, Digest, NotThere, Secrets, Unsupported
from worker.sources.huberrors import OFFLINE

FILES_LIMIT: Final = 10_000
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
_ALGORITHMS: Final[Mapping[int, str]] = {40: "git-sha1", 64: "sha256"}


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file of a snapshot, and where it lies."""

    path: Path
    size_bytes: int
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the cache has of a repository at one commit, by name: perhaps not all that the repository has."""

    commit: str
    files: Mapping[str, CachedFile]


def cache_folder(secrets: Secrets) -> Path:
    """Where this user's cache is, as huggingface_hub finds it."""
    named = secrets.variable("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE")
    if named is not None:
        return Path(named).expanduser()
    home = secrets.variable("HF_HOME")
    if home is not None:
        return Path(home).expanduser() / "hub"
    base = secrets.variable("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "huggingface" / "hub"


def snapshot(cache: Path, repository: str, revision: str | None) -> Snapshot:
    """What is there of a revision. Raises `Unsupported` if there is nothing, `BadListing`."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    text = f"{repository}: its cache does not have {(revision or 'main')[:60]!r} of it, and {OFFLINE}"
    missing = Unsupported(text, of_node=True)
    try:
        commit = _commit(folder, revision or "main")
        if commit is None:
            raise missing
        return Snapshot(commit, dict(_files(folder.resolve(strict=True), folder / "snapshots" / commit, repository)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing from error


def _commit(folder: Path, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        check_inner(revision, revision)
    except InvalidRequest as error:
        raise NotThere(error.message) from error
    text = (folder / "refs" / revision).read_text(encoding="utf-8", errors="replace").strip()
    return text if _COMMIT.fullmatch(text) else None


def _files(repository: Path, root: Path, name: str) -> Iterator[tuple[str, CachedFile]]:
    count = 0
    for folder, _, names in os.walk(root.resolve(strict=True)):
        for each in names:
            count += 1
            if count > FILES_LIMIT:
                raise BadListing(f"{name}: the cache has more than {FILES_LIMIT} files of it")
            path = Path(folder, each)
            real = path.resolve()
            if real.is_relative_to(repository) and real.is_file():  # a link that leads elsewhere is no cached one
                yield path.relative_to(root.resolve()).as_posix(), CachedFile(real, real.stat().st_size, _digest(real))


def _digest(blob: Path) -> Digest | None:
    """What the blob's name says that it is."""
    algorithm = _ALGORITHMS.get(len(blob.name)) if _COMMIT.fullmatch(blob.name) else None
    return Digest.parse(f"{algorithm}:{blob.name}") if algorithm else None
