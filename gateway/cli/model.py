"""What `--model` may say, and the file behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from gateway.cli.demo import DEMO_MODEL, DEMO_TEMPLATE, demo_model
from gateway.cli.exits import NOT_FOUND, USAGE, CliError
from gateway.cli.folders import shown
from gateway.cli.hub import hub_model, parse_source
from gateway.cli.say import Teller
from schemas.errors import InvalidName
from schemas.subjects import check_model_id

_MAGIC: Final = b"GGUF"
_PLACES: Final = ("/", "./", "../", "~", "file://", "hf://")
_PART: Final = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model id and its file on this machine. `flags` are llama-server's own, as its engine needs them."""

    model: str
    path: Path
    flags: Mapping[str, str] = field(default_factory=dict[str, str])


def local_models(texts: Sequence[str], teller: Teller) -> tuple[LocalModel, ...]:
    """Each `--model`, in their order. Raises `CliError`, also for two of one name."""
    models = tuple(local_model(text, teller) for text in texts)
    names = [model.model for model in models]
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise CliError(f"two models are called {doubled!r}; give one another name: --model NAME=PATH", USAGE)
    return models


def local_model(text: str, teller: Teller) -> LocalModel:
    """The model that `--model` names: `smollm2`, a GGUF file, or a source of the Hub; `NAME=` before it gives it
    another name. Raises `CliError`."""
    name, mark, rest = text.partition("=")
    if mark and not text.startswith(_PLACES) and not Path(text).is_file():
        return replace(_found(rest, teller), model=_checked(name))
    return _found(text, teller)


def _found(text: str, teller: Teller) -> LocalModel:
    path = Path(text.removeprefix("file://")).expanduser()
    if text == DEMO_MODEL and not path.exists():
        return LocalModel(DEMO_MODEL, demo_model(teller), {"chat-template-file": str(DEMO_TEMPLATE)})
    if _looks_like_a_path(text) or path.is_file():
        return _from_file(path)
    source = parse_source(text)
    if source is not None:
        return LocalModel(_checked(source.model), hub_model(source, teller))
    raise CliError(
        f"--model {text!r}: give {DEMO_MODEL} (the demo), a file PATH.gguf, or hf://owner/repo[@revision][:quant][#file]",
        USAGE,
    )


def _looks_like_a_path(text: str) -> bool:
    return text.startswith(_PLACES[:-1]) or (text.endswith(".gguf") and "#" not in text)


def _from_file(path: Path) -> LocalModel:
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except OSError as error:
        raise CliError(f"{shown(path)}: {error.strerror}; give the path of a GGUF file", NOT_FOUND) from error
    if head != _MAGIC:
        raise CliError(f"{shown(path)} is no GGUF file; llama.cpp serves only those", USAGE)
    return LocalModel(_checked(_PART.sub("", path.stem)), path.absolute())


def _checked(model: str) -> str:
    try:
        return check_model_id(model)
    except InvalidName as error:
        raise CliError(f"{error.message}; choose another name: --model NAME=PATH", USAGE) from error
