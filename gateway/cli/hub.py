"""Models of the Hugging Face Hub: from `hf://owner/repo[@revision][:quant][#file]` to checked files in the cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from gateway.cli.download import RemoteFile, fetch
from gateway.cli.exits import FAILURE, NOT_ALLOWED, NOT_FOUND, USAGE, CliError
from gateway.cli.folders import cache_dir
from gateway.cli.say import Teller
from schemas import hubfiles

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_SOURCE: Final = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:@(?P<revision>[\w./-]+))?(?::(?P<quant>[A-Za-z0-9_]+))?(?:#(?P<file>[^#]+\.gguf))?"
)
_METADATA_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the Hub, and which of its files."""

    repository: str
    revision: str | None = None
    quant: str | None = None
    file: str | None = None

    @property
    def model(self) -> str:
        """The id under which clients ask for it."""
        chosen = self.quant or (Path(self.file).stem if self.file else None)
        return f"{self.repository}:{chosen}" if chosen else self.repository


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository. `sha256` is None for a file that is no LFS object."""

    name: str
    size_bytes: int
    sha256: str | None


def parse_source(text: str) -> HubSource | None:
    """The source that `text` names, `None` if it is none of the Hub's."""
    hit = _SOURCE.fullmatch(text)
    return HubSource(hit["repo"], hit["revision"], hit["quant"], hit["file"]) if hit else None


def choose_files(source: HubSource, files: Sequence[HubFile]) -> list[HubFile]:
    """The file to load, or all parts of one that is split, first part first. Raises `CliError`, which lists them."""
    known = {file.name: file for file in files}
    try:
        main = hubfiles.choose_files(list(known), file=source.file, quant=source.quant).main
    except hubfiles.NoChoice as error:
        raise CliError(f"{source.repository}: {error.message}", NOT_FOUND) from error
    return [known[part] for part in hubfiles.part_names(main)]


def hub_model(source: HubSource, teller: Teller) -> Path:
    """The path of the model's (first) file, fetched and checked. Raises `CliError`."""
    from huggingface_hub import get_token

    teller.line(f"asking the Hub for {source.repository}")
    commit, files = _metadata(source)
    folder = cache_dir() / "models" / source.repository / commit
    chosen = choose_files(source, files)
    for file in chosen:
        if file.sha256 is None:
            raise CliError(f"{file.name}: the Hub gives no sha256 for it, so it cannot be checked", FAILURE)
        url = hub_url(source.repository, commit, file.name)
        fetch(RemoteFile(url, file.sha256, file.size_bytes, get_token()), folder / file.name, teller)
    return folder / chosen[0].name


def hub_url(repository: str, revision: str, file: str) -> str:
    """Where the bytes of a file are; `HF_ENDPOINT` is honoured."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file, revision=revision)


def offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids to ask."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _metadata(source: HubSource) -> tuple[str, list[HubFile]]:
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(source.repository, revision=source.revision, files_metadata=True, timeout=_METADATA_S)
    except Exception as error:  # noqa: BLE001  the library's errors, and those of the HTTP library under it
        _translated(source, error)
    if info.sha is None:
        raise CliError(f"{source.repository}: the Hub names no commit for it", FAILURE)
    return info.sha, _files(info)


def _files(info: ModelInfo) -> list[HubFile]:
    return [
        HubFile(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else None) for item in info.siblings or []
    ]


def _translated(source: HubSource, error: Exception) -> NoReturn:
    from huggingface_hub import errors as hub

    name = source.repository
    if isinstance(error, hub.GatedRepoError):
        raise CliError(f"{name} is gated: accept its terms on the Hub, then set HF_TOKEN", NOT_ALLOWED) from error
    if isinstance(error, hub.RevisionNotFoundError):
        raise CliError(f"{name} has no revision {source.revision!r}", NOT_FOUND) from error
    if isinstance(error, hub.RepositoryNotFoundError):
        raise CliError(f"the Hub has no {name}, or it is private: check the name, set HF_TOKEN", NOT_FOUND) from error
    if isinstance(error, hub.OfflineModeIsEnabled):
        raise CliError(f"{name}: HF_HUB_OFFLINE is set; unset it, or give a file: --model PATH.gguf", USAGE) from error
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise CliError(
        f"the Hub cannot be asked for {name} ({reason}); check the network, or give --model PATH.gguf"
    ) from error
