"""Which files of a folder of model files are meant: rules over names alone, the same for all sources that list files.

| asked                | chosen                                                                                     |
|----------------------|--------------------------------------------------------------------------------------------|
| `#file`              | that file, and all parts of it if it is split; nothing else                                |
| `:QUANT`             | the GGUF with that word in its name or folder, whatever the case; all parts of a split one |
| neither              | as with `:Q4_K_M`; where there is none, the only GGUF there is                             |
| `files`, patterns    | with one of the above: too. Alone: all that fit, and the model is chosen among them        |

Of several that fit a quantisation the first of these differences decides: the word stands in the name and not only in
the folder, ends it, is not `UD-`, the file is not split. What is left then is ambiguous and refused with the list.

A projector (`mmproj…`) comes with a model that was chosen by rule: from the model's folder if there is one there, F16
before Q8_0, BF16, F32 and any other. Draft models (`draft`, `mtp`, `eagle3` in the name), `config.json`, tokenizers
and all else only come by pattern. Projectors and importance matrices are never the model itself, draft models only
where there is no other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Final, Literal, NoReturn

Role = Literal["model", "shard", "projector", "draft", "config", "other"]
DEFAULT_QUANT: Final = "Q4_K_M"
CHOICES_SHOWN: Final = 40
PARTS_LIMIT: Final = 1000

_SHARD: Final = re.compile(
    r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE | re.DOTALL
)
_PROJECTOR: Final = re.compile(r"(?:^|[-._])mmproj(?:[-._]|$)", re.IGNORECASE)
_DRAFT: Final = re.compile(r"(?:^|[-._])(?:draft|mtp|eagle3)(?:[-._]|$)", re.IGNORECASE)
_MATRIX: Final = re.compile(r"imatrix", re.IGNORECASE)
_CONFIG: Final = re.compile(
    r"(?:config|generation_config|preprocessor_config|processor_config|tokenizer|tokenizer_config|special_tokens_map|"
    r"added_tokens|vocab|model_index)\.json|merges\.txt|vocab\.txt|tokenizer\.model|.+\.jinja",
    re.IGNORECASE,
)
_OTHER_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
_PROJECTOR_ORDER: Final = ("F16", "Q8_0", "BF16", "F32")


class NoChoice(Exception):
    """No file, or none in particular, is meant. `message` says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NothingFits(NoChoice):
    """What was asked for is not among the files."""


class SeveralFit(NoChoice):
    """More than one model is meant; the message lists them."""


class NotServable(NoChoice):
    """There are files of models, and none that llama.cpp loads."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The names chosen, the model's own (first part first) before all others, and which an engine loads."""

    main: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Model:
    """One GGUF model: its files in order."""

    name: str
    parts: tuple[str, ...]


def choose_files(
    names: Sequence[str], *, file: str | None = None, quant: str | None = None, patterns: Sequence[str] = ()
) -> Chosen:
    """The files that are meant. Raises `NoChoice` in one of its kinds."""
    fitting = _fitting(names, patterns)
    if file is not None:
        return _chosen(_named(names, file), fitting)
    if patterns and quant is None:
        return _by_patterns(names, fitting)
    model = _by_rule(names, quant)
    return _chosen(model.parts, fitting or _projector(names, model))


def role_of(name: str, main: str) -> Role:
    """What a file is for, beside the model `main`."""
    if name == main:
        return "model"
    base = _base(name)
    if _is_split(name) and _first(name) == _first(main):
        return "shard"
    if _CONFIG.fullmatch(base):
        return "config"
    if not base.lower().endswith(".gguf"):
        return "other"
    return "projector" if _PROJECTOR.search(base) else "draft" if _DRAFT.search(base) else "other"


def part_names(name: str) -> tuple[str, ...]:
    """All parts of the split model of which `name` is one, in order; `name` alone if it is not split."""
    hit = _SHARD.fullmatch(name)
    return (name,) if hit is None else tuple(_part(hit, part) for part in range(1, int(hit["count"]) + 1))


def _part(hit: re.Match[str], part: int) -> str:
    return f"{hit['stem']}-{part:05d}-of-{hit['count']}{hit['end']}"


def _first(name: str) -> str:
    hit = _SHARD.fullmatch(name)
    return name if hit is None else _part(hit, 1)


def _is_split(name: str) -> bool:
    return _SHARD.fullmatch(name) is not None


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _models(names: Sequence[str]) -> list[str]:
    found = [name for name in names if _is_weights(_base(name))]
    return [name for name in found if not _DRAFT.search(_base(name))] or found


def _is_weights(base: str) -> bool:
    return base.lower().endswith(".gguf") and not _PROJECTOR.search(base) and not _MATRIX.search(base)


def _fitting(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """All names that a pattern fits, with all parts of those that are split. Each pattern must fit one."""
    found: dict[str, None] = {}
    for pattern in patterns:
        fits = _matcher(pattern)
        hits = [name for name in names if fits(name)]
        if not hits:
            raise NothingFits(f"no file fits {pattern!r}; there are{listed(names)}")
        found.update(dict.fromkeys(hits))
    there = frozenset(names)
    firsts = dict.fromkeys(_first(name) for name in found)
    return [part for first in firsts for part in _all_parts(first, there)]


def _matcher(pattern: str) -> Callable[[str], object]:
    """A pattern with a slash is for the whole path, one without for the file's own name too."""
    compiled = re.compile(translate(pattern))
    if "/" in pattern:
        return lambda name: compiled.match(name) or name == pattern
    return lambda name: compiled.match(name) or compiled.match(_base(name)) or name == pattern


def _named(names: Sequence[str], file: str) -> tuple[str, ...]:
    if file not in names:
        raise NothingFits(f"there is no {file!r}; there are{listed(names)}")
    return _all_parts(file, frozenset(names))


def _all_parts(name: str, there: frozenset[str]) -> tuple[str, ...]:
    hit = _SHARD.fullmatch(name)
    if hit is not None and not 1 <= int(hit["count"]) <= PARTS_LIMIT:
        raise NothingFits(f"{name!r} is split into {int(hit['count'])} parts; 1 to {PARTS_LIMIT} can be")
    parts = part_names(name)
    held = sum(part in there for part in parts)
    if held != len(parts):
        raise NothingFits(f"{name!r} is split, and only {held} of its {len(parts)} parts are there")
    return parts


def _chosen(parts: Sequence[str], others: Iterable[str]) -> Chosen:
    return Chosen(parts[0], tuple(dict.fromkeys((*parts, *others))))


def _by_patterns(names: Sequence[str], fitting: Sequence[str]) -> Chosen:
    if not _models(fitting):
        return _chosen(fitting[:1], fitting)
    return _chosen(_by_rule(fitting, None).parts, fitting)


def _by_rule(names: Sequence[str], quant: str | None) -> _Model:
    models = _models(names)
    if not models:
        _not_servable(names)
    firsts = list(dict.fromkeys(_first(name) for name in models))
    hits = _with_quant(firsts, quant or DEFAULT_QUANT)
    if not hits and quant is None and len(firsts) == 1:
        hits = firsts
    if len(hits) != 1:
        _no_one(hits, models, quant)
    return _Model(hits[0], _all_parts(hits[0], frozenset(models)))


def _with_quant(firsts: Sequence[str], quant: str) -> list[str]:
    """Those with the word in them, of which only the best kind is left."""
    word = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?=[-._/]|$)", re.IGNORECASE)
    ranked = [(_rank(name, word, quant), name) for name in firsts if word.search(name)]
    best = min((rank for rank, _ in ranked), default=None)
    return [name for rank, name in ranked if rank == best]


def _rank(name: str, word: re.Pattern[str], quant: str) -> tuple[bool, bool, bool, bool]:
    split = _SHARD.fullmatch(name)
    stem = _base(split["stem"] if split else name[: -len(".gguf")]).lower()
    last = stem.endswith(quant.lower())
    return not word.search(stem), not last, last and stem.endswith(f"ud-{quant.lower()}"), split is not None


def _no_one(hits: Sequence[str], models: Sequence[str], quant: str | None) -> NoReturn:
    if hits:
        raise SeveralFit(f"several files fit {quant or DEFAULT_QUANT}; say which with #FILE:{listed(hits)}")
    if quant is not None:
        raise NothingFits(f"no file is {quant}; say which with :QUANT or #FILE:{listed(models)}")
    raise SeveralFit(f"say which file, with :QUANT or #FILE:{listed(models)}")


def _not_servable(names: Sequence[str]) -> NoReturn:
    held = next((end for end in _OTHER_WEIGHTS if any(name.lower().endswith(end) for name in names)), None)
    if held is None:
        raise NothingFits(
            f"there is no GGUF file; there are{listed(names)}" if names else "there is no GGUF file, nor any"
        )
    raise NotServable(
        f"it holds {held[1:]} and no GGUF file, and llama.cpp loads GGUF only: choose a repository of GGUF files "
        "(often named …-GGUF), or name what to fetch all the same with `files`"
    )


def _projector(names: Sequence[str], model: _Model) -> list[str]:
    found = [name for name in names if name.lower().endswith(".gguf") and _PROJECTOR.search(_base(name))]
    folder = model.name.rpartition("/")[0]
    beside = [name for name in found if name.rpartition("/")[0] == folder]
    return sorted(beside or found, key=_projector_rank)[:1]


def _projector_rank(name: str) -> tuple[int, str]:
    words = re.split(r"[-.]", _base(name).upper())
    rank = next((at for at, kind in enumerate(_PROJECTOR_ORDER) if kind in words), len(_PROJECTOR_ORDER))
    return rank, name


def listed(names: Sequence[str]) -> str:
    """Names for people, each on a line: some of them, where they are many or long, and nothing that is no print."""
    shown = "".join(f"\n  {_printable(name)}" for name in names[:CHOICES_SHOWN])
    return shown + (f"\n  … and {len(names) - CHOICES_SHOWN} more" if len(names) > CHOICES_SHOWN else "")


def _printable(name: str) -> str:
    text = "".join(mark if mark.isprintable() else "�" for mark in name[:120])
    return text if len(name) <= 120 else f"{text}…"
