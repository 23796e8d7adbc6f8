"""One look at a repository of the Hub by its library. All here blocks, and is for a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from worker.sources import BadListing, Denied, Digest, SourceError
from worker.sources.huberrors import translated
from worker.sources.hubguard import SILENCE_LIMIT_S, Look, guarding

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile, RepoFolder

T = TypeVar("T")
FILES_LIMIT: Final = 500_000
_COMMIT_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository."""

    path: str
    size_bytes: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Seen:
    """A repository at one commit. Of each name in `_kept` the size and the oid: a sha256 of an LFS object, else
    git's."""

    commit: str
    gated: bool
    names: Sequence[str]
    _kept: Mapping[str, tuple[int, str]] = field(repr=False)

    def file(self, path: str) -> HubFile:
        """The file of that name. Raises `BadListing` for figures that cannot be."""
        size_bytes, oid = self._kept[path]
        try:
            digest = Digest("sha256" if len(oid) == 64 else "git-sha1", oid)
        except ValueError as error:
            raise BadListing(f"{path}: the Hub's checksum is none: {error}") from error
        return HubFile(path, size_bytes, digest)


def seen(look: Look) -> Seen:
    """Commit and files of the repository. Raises a `SourceError`."""
    return _guarded(look, _seen)


def check_access(look: Look, url: str) -> None:
    """Ask whether the bytes behind a `resolve` URL would be given: the metadata of a gated repository is for all.
    Raises a `SourceError`."""
    _guarded(look, lambda each: _head(each, url))


def stored_token() -> str | None:
    """The token that the library has kept since somebody logged in. Raises `Denied`."""
    from huggingface_hub import get_token

    try:
        return get_token()
    except Exception as error:  # noqa: BLE001  whatever it is, the remedy is the same
        raise Denied(f"the token that the Hub's library keeps cannot be used ({type(error).__name__})") from None


def _guarded(look: Look, ask: Callable[[Look], T]) -> T:
    try:
        with guarding(look):
            return ask(look)
    except SourceError:
        raise
    except Exception as error:  # noqa: BLE001  the library's errors, and those under it
        raise translated(look, error) from None  # its text may hold a signed URL


def _head(look: Look, url: str) -> None:
    from huggingface_hub.file_download import (
        get_hf_file_metadata,  # pyright: ignore[reportUnknownVariableType]  a dict of it is untyped
    )

    get_hf_file_metadata(url, token=look.token or False, timeout=SILENCE_LIMIT_S)


def _seen(look: Look) -> Seen:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=look.endpoint, token=look.token or False)
    info = api.model_info(look.repository, revision=look.revision, timeout=SILENCE_LIMIT_S)
    commit = info.sha
    if commit is None or not (commit.isascii() and commit.isalnum()) or len(commit) > _COMMIT_LIMIT:
        raise BadListing(f"{look.repository}: the Hub names no commit for it")
    names: list[str] = []
    kept: dict[str, tuple[int, str]] = {}
    for item in _files(api.list_repo_tree(look.repository, recursive=True, revision=commit), look):
        names.append(item.path)
        kept[item.path] = (item.size, item.lfs.sha256 if item.lfs else item.blob_id)
    return Seen(commit, bool(info.gated), names, kept)


def _files(items: Iterable[RepoFile | RepoFolder], look: Look) -> Iterator[RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    for count, item in enumerate(items):
        if count >= FILES_LIMIT:
            raise BadListing(f"{look.repository}: it lists more than {FILES_LIMIT} files")
        if isinstance(item, RepoFile):
            _check(item.path, item.size, look)
            yield item


def _check(path: object, size: object, look: Look) -> None:
    """The library takes what it is sent."""
    if not isinstance(path, str) or not isinstance(size, int):
        raise BadListing(f"{look.repository}: the Hub lists a file without a name or size")
