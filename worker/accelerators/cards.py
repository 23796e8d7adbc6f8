"""Telling whether two backends mean the same card. Their lists hold no common id: only names and sizes to go by.

A card offered twice would be filled twice, so doubt means "the same": two cards of one vendor and nearly one size, or
one name within the other, are one card, each counted once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol, TypeVar

PREFERENCE: Final = ("cuda", "rocm", "metal", "sycl", "vulkan")
"""The first that knows a card has it. Backends that are not named here come after all others."""
_VENDORS: Final = {
    "nvidia": re.compile(r"nvidia|geforce|quadro|tesla|\brtx\b", re.IGNORECASE),
    "amd": re.compile(r"\bamd\b|radeon|instinct|\bgfx\d", re.IGNORECASE),
    "intel": re.compile(r"\bintel\b|\barc\b|\biris\b", re.IGNORECASE),
    "apple": re.compile(r"\bapple\b", re.IGNORECASE),
}
_NOISE: Final = frozenset({"nvidia", "amd", "ati", "intel", "apple", "corporation", "inc", "graphics", "gpu"})
_BRACKETS: Final = re.compile(r"\([^)]*\)|\[[^\]]*\]")
_WORD: Final = re.compile(r"[a-z0-9]+")
_GFX: Final = re.compile(r"gfx[0-9a-f]+")
_NEAR: Final = 0.10


class Card(Protocol):
    """Something with a name and a size."""

    @property
    def name(self) -> str:
        """As its driver names it."""
        ...

    @property
    def total_bytes(self) -> int:
        """Its memory."""
        ...


C = TypeVar("C", bound=Card)
D = TypeVar("D", bound=Card)


def vendor(name: str) -> str | None:
    """Who made it, by its name."""
    return next((vendor for vendor, pattern in _VENDORS.items() if pattern.search(name)), None)


def rank(backend: str) -> int:
    """Place in the preference."""
    return PREFERENCE.index(backend) if backend in PREFERENCE else len(PREFERENCE)


def pairs(these: Sequence[C], those: Sequence[D]) -> list[tuple[C, D]]:
    """Which of these are which of those: the surest pairs first, each card in one pair at most."""
    graded = [
        (grade, _apart(this, that), at, other)
        for at, this in enumerate(these)
        for other, that in enumerate(those)
        if (grade := _likeness(this, that)) is not None
    ]
    left, right, found = set[int](), set[int](), list[tuple[C, D]]()
    for _grade, _distance, at, other in sorted(graded):
        if at not in left and other not in right:
            left.add(at)
            right.add(other)
            found.append((these[at], those[other]))
    return found


def _likeness(this: Card, that: Card) -> int | None:
    """0 for one name, 1 for a name within the other, 2 for one vendor and size; `None` for different cards."""
    maker = vendor(this.name)
    if maker is None or maker != vendor(that.name):
        return 0 if this.name == that.name else None
    mine, its = _words(this.name), _words(that.name)
    if mine == its and mine:
        return 0
    if mine <= its or its <= mine:
        return 1
    return 2 if _apart(this, that) <= _NEAR else None


def _apart(this: Card, that: Card) -> float:
    """How far the sizes lie apart, as a part of the larger."""
    larger = max(this.total_bytes, that.total_bytes)
    return abs(this.total_bytes - that.total_bytes) / larger if larger else 0.0


def _words(name: str) -> frozenset[str]:
    """What tells the model: no vendor, no brackets, no names of chips."""
    words = _WORD.findall(_BRACKETS.sub(" ", name.lower()))
    return frozenset(word for word in words if word not in _NOISE and not _GFX.fullmatch(word))
