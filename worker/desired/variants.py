"""Which files and profile of a model suit this node: the first variant that fits it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from schemas.model import Variant, Wanted
from schemas.node import Device
from schemas.source import parse_source

W = TypeVar("W", bound=Wanted)

NO_GPU: Final = "CPU"
_MARKS: Final = re.compile(r"\((?:R|TM|C)\)|[®™©]", re.IGNORECASE)
_SPLIT: Final = re.compile(r"[^A-Za-z0-9]+")
_MEMORY: Final = re.compile(r"\d+(?:GB|GIB|MB|G)", re.IGNORECASE)
_SERIES_CHARS: Final = 4
"""Names of a series that belong to the number after them are short: RTX, PRO, Max, Flex."""
_SUFFIX_CHARS: Final = 5
"""Names that tell models of one number apart are short too: Ti, SUPER, XTX, Ada."""
_GENERIC: Final = frozenset(("GPU", "AMD"))


@dataclass(frozen=True, slots=True)
class Machine:
    """What variants ask about a node."""

    shape: str
    memory_bytes: int
    """Of the largest device."""
    labels: Mapping[str, str]


def machine(devices: Iterable[Device], labels: Mapping[str, str]) -> Machine:
    """Of a node with these devices. Its GPUs count; where there are none, its processors' memory does."""
    found = tuple(devices)
    gpus = [each for each in found if each.backend != "cpu"]
    memory = max((each.memory_total_bytes for each in gpus or found), default=0)
    return Machine(shape_of(gpus), memory, labels)


def shape_of(gpus: Iterable[Device]) -> str:
    """`GPU.<model>.<count>`: of the model of which there are most, by name among equals; `CPU` without any. Parts of
    one GPU count as that one."""
    whole = {each.parent or each.device: each for each in gpus}
    models = Counter(gpu_model(each.name) for each in whole.values())
    if not models:
        return NO_GPU
    model, count = min(models.items(), key=lambda each: (-each[1], each[0]))
    return f"GPU.{model}.{count}"


def gpu_model(name: str) -> str:
    """The model in a product's name: `NVIDIA A100-SXM4-80GB` is A100, `GeForce RTX 4070 Ti SUPER` RTX4070TISUPER.

    The first word with a digit is the model. A bare number takes the short names before it (RTX) and after it (Ti) in;
    so does one of two characters the names after it (M3 Max). A name without a digit counts as a whole.
    """
    words = [word for word in _SPLIT.split(_MARKS.sub(" ", name)) if word]
    at = next((n for n, word in enumerate(words) if re.search(r"\d", word) and not _MEMORY.fullmatch(word)), None)
    if at is None:
        return "".join(words).upper()[:32] or "UNKNOWN"
    first, end = at, at + 1
    if words[at].isdigit():
        while first and _short(words[first - 1], _SERIES_CHARS):
            first -= 1
    if words[at].isdigit() or len(words[at]) == len("M1"):
        while end < len(words) and _short(words[end], _SUFFIX_CHARS):
            end += 1
    return "".join(words[first:end]).upper()[:32]


def _short(word: str, chars: int) -> bool:
    return word.isalpha() and len(word) <= chars and word.upper() not in _GENERIC


def fits(variant: Variant, here: Machine) -> bool:
    """Whether a variant is meant for a node like this one: all that it asks for must hold."""
    if variant.shape is not None and variant.shape.upper() != here.shape:
        return False
    if variant.memory_at_least_bytes is not None and here.memory_bytes < variant.memory_at_least_bytes:
        return False
    return variant.selector is None or variant.selector.holds(here.labels)


def chosen(want: W, here: Machine) -> W:
    """As it is wanted on a node like this one: without variants; where none fits, with what stands beside them."""
    if not want.variants:
        return want
    variant = next((each for each in want.variants if fits(each, here)), None)
    changes: dict[str, Any] = {"variants": ()}
    if variant is not None:
        changes |= _files(want, variant)
        changes |= {"profile": variant.profile} if variant.profile is not None else {}
    return want.model_copy(update=changes)


def _files(want: Wanted, variant: Variant) -> dict[str, Any]:
    if variant.files:
        return {"files": variant.files}
    if variant.quant is None:
        return {}
    ref = parse_source(want.source)
    if ref.scheme != "hf":
        return {"files": (f"*{variant.quant}*",)}
    revision = f"@{ref.revision}" if ref.revision else ""
    return {"source": f"hf://{ref.place}{revision}:{variant.quant}", "files": ()}
