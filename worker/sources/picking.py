"""From the names that a source lists to a model's files: the rules of `schemas.hubfiles`, with a source's errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from schemas.errors import InvalidRequest
from schemas.hubfiles import Chosen, NoChoice, NotServable, SeveralFit, choose_files
from schemas.source import check_inner
from worker.sources import Ambiguous, BadListing, Digest, NotThere, Unsupported, Want


def pick(names: Sequence[str], want: Want, place: str, *, file: str | None = None) -> Chosen:
    """The files of what is wanted; `file` names the one to load. Raises `NotThere`, `Ambiguous`, `Unsupported`, or
    `BadListing` for names that cannot stand beside each other in a folder."""
    try:
        chosen = choose_files(names, file=file, quant=want.quant or want.ref.quant, patterns=want.files)
    except SeveralFit as error:
        raise Ambiguous(f"{place}: {error.message}") from error
    except NotServable as error:
        raise Unsupported(f"{place}: {error.message}") from error
    except NoChoice as error:
        raise NotThere(f"{place}: {error.message}") from error
    _check_beside(chosen.names, names, place)
    return chosen


def _check_beside(chosen: Sequence[str], names: Sequence[str], place: str) -> None:
    wanted = frozenset(chosen)
    try:
        for name in chosen:
            check_inner(name, place)
    except InvalidRequest as error:
        raise BadListing(error.message) from error
    if sum(name in wanted for name in names) != len(wanted):
        raise BadListing(f"{place}: the same file is listed twice")
    folders = {str(parent) for name in chosen for parent in PurePosixPath(name).parents}
    if clash := sorted(wanted & folders):
        raise BadListing(f"{place}: {clash[0][:60]!r} is listed as a file and as a folder")


def vouched(path: str, told: Digest | None, want: Want, place: str) -> Digest | None:
    """What a file is to be checked with: the caller's word before the source's. Raises `BadListing` where the two
    speak of the same algorithm and differ: then it is another file that the caller means."""
    given = want.checksum(path)
    if given is None or told is None or given.algorithm != told.algorithm:
        return given or told
    if given != told:
        raise BadListing(f"{place}: {path} is {told} there, and {given} is wanted; name the revision that has it")
    return told
