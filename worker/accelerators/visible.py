"""What the worker's own environment leaves it of the devices: a job of a batch system may have only some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from schemas.node import Device


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

    def choose(self, devices: Sequence[tuple[int, Device]]) -> list[tuple[int, Device]]:
        """Those that may be used of devices with their numbers, in the order and under the names that an engine will
        see: the first that the variable names is number 0."""
        if self.words is None:
            return list(devices)
        chosen = dict.fromkeys(self._named(devices))
        return [
            (number, device.model_copy(update={"device": f"{device.backend}:{place}", "parent": None}))
            for place, (number, device) in enumerate(devices[at] for at in chosen)
        ]

    def _named(self, devices: Sequence[tuple[int, Device]]) -> Iterator[int]:
        for word in self.words or ():
            hit = next((at for at, each in enumerate(devices) if _names(word, *each)), None)
            if hit is None:
                return
            yield hit


def _names(word: str, number: int, device: Device) -> bool:
    if word.isdigit():
        return word == str(number)
    return device.uuid is not None and device.uuid.startswith(word)
