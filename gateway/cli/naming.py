"""What `puna pull` is given: a source, and the name under which clients will ask for the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.cli.exits import USAGE, CliError
from schemas.errors import InvalidName, InvalidRequest
from schemas.source import SourceRef, parse_source
from schemas.subjects import check_model_id

if TYPE_CHECKING:
    from gateway.shelf import Stored
    from gateway.view import Moment

_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")
_SUFFIXES: Final = (".gguf", ".safetensors")
_PATHS: Final = ("/", "./", "../", "~")


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model and where it comes from."""

    model: str
    source: str


def what_to_pull(text: str, name: str | None, moment: Moment) -> Pulled:
    """The model that `text` means: a source, a path on the nodes, or the name of a model that the fleet knows. Raises
    `CliError`, which shows what a right one looks like."""
    stored = moment.stored(text)
    if stored is not None and (known := known_source(stored)) is not None:
        return Pulled(_checked(name or text), known)
    source = _path(text) if text.startswith(_PATHS) else text
    try:
        ref = parse_source(source)
    except InvalidRequest as error:
        if "://" in source:
            raise CliError(error.message, USAGE) from error
        raise CliError(_unknown(text), USAGE) from error
    return Pulled(_checked(name or name_of(ref)), source if "://" in source else f"hf://{source}")


def known_source(stored: Stored) -> str | None:
    """Where a model came from, by its record or its copies."""
    told = [stored.record.source] if stored.record else [one.copy.source for one in stored.copies.values()]
    return next((source for source in told if source), None)


def name_of(ref: SourceRef) -> str:
    """The id that a source suggests: `owner/repo:quant` of the Hub, another node's own, else the file's name."""
    if ref.scheme == "peer" and ref.inner:
        return ref.inner
    if ref.scheme == "hf":
        chosen = ref.quant or (_stem(ref.inner) if ref.inner else None)
        return f"{ref.place}:{chosen}" if chosen else ref.place
    return _stem((ref.inner or ref.place).rstrip("/"))


def _stem(path: str) -> str:
    name = path.split("?")[0].split("#")[0].rsplit("/", 1)[-1]
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return _PART.sub("", name)


def _path(text: str) -> str:
    return f"file://{Path(text).expanduser().absolute().resolve()}"


def _checked(model: str) -> str:
    try:
        return check_model_id(model)
    except InvalidName as error:
        raise CliError(f"{error.message}; give it a name with --as NAME", USAGE) from error


def _unknown(text: str) -> str:
    return (
        f"the fleet knows no model {text[:80]!r}, so say where it comes from: hf://owner/repo:Q4_K_M, "
        "owner/repo:Q4_K_M, https://host/model.gguf, s3://bucket/key, or file:///path on the node"
    )
