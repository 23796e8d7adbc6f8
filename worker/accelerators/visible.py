"""What the worker's own environment leaves it of the devices: a job of a batch system may have only some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visible:
    """`CUDA_VISIBLE_DEVICES` and its like: numbers or the beginnings of ids, valid up to the first that is neither."""

    words: tuple[str, ...] | None

    @classmethod
    def of(cls, value: str | None) -> Visible:
        """From the variable; unset means all."""
        if value is None:
            return cls(None)
        words = [word.strip() for word in value.split(",")]
        end = next((at for at, word in enumerate(words) if word in ("", "-1", "NoDevFiles")), len(words))
        return cls(tuple(words[:end]))

    def has(self, index: int, *ids: str | None) -> bool:
        """Whether a device may be used, by its number or one of its ids."""
        if self.words is None:
            return True
        return any(self._names(word, index, ids) for word in self.words)

    def _names(self, word: str, index: int, ids: Sequence[str | None]) -> bool:
        if word.isdigit():
            return int(word) == index
        return any(each is not None and each.startswith(word) for each in ids)
