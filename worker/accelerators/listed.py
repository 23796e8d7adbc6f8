"""Devices of which the engine's own list is the only witness, with figures from whatever else knows the card."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import psutil

from schemas.node import Device, DeviceMetrics
from worker.accelerators.cards import pairs, rank, vendor
from worker.accelerators.drm import SYS, Card, cards
from worker.accelerators.listing import EngineList, Listed

log = logging.getLogger(__name__)

NUMBERS: Final = 16
"""Most numbers of a runtime that are tried."""
_INTEGRATED: Final = re.compile(r"\bu?hd graphics|\biris\b|\bxe graphics|arc\(tm\) (graphics|1[34]0)", re.IGNORECASE)
_NEAR: Final = 0.10


class Witness(Protocol):
    """Something else that knows devices."""

    def sample(self) -> list[Device]:
        """Its devices of now."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """A device as another backend sees it, comparable to a line of the list."""

    device: Device

    @property
    def name(self) -> str:
        """As its driver names it."""
        return self.device.name

    @property
    def total_bytes(self) -> int:
        """Its memory."""
        return self.device.memory_total_bytes


def no_pin(devices: Sequence[str]) -> Mapping[str, str]:
    """For a backend of which no variable is known."""
    return {}


class EngineDevices:
    """The devices of one backend of the list, without those that a preferred backend of `rivals` has already."""

    def __init__(
        self,
        backend: str,
        listing: EngineList,
        *,
        rivals: Collection[str] = (),
        beside: Sequence[Witness] = (),
        root: Path = SYS,
        pin: Callable[[Sequence[str]], Mapping[str, str]] = no_pin,
    ) -> None:
        self.backend = backend
        self._pin = pin
        self._listing = listing
        self._rivals = frozenset(rivals)
        self._beside = beside
        self._root = root
        self._cards: dict[str, Card] = {}

    def discover(self) -> bool:
        """Whether the engine lists any, offered or not: what is not offered must be hidden from engines."""
        return bool(self.entries())

    def sample(self) -> list[Device]:
        """The devices of now."""
        mine = self._offered()
        seen = [Seen(device) for witness in self._beside for device in witness.sample()]
        known = {entry.device: other.device for entry, other in pairs(mine, seen)}
        sensors = self._sensors([entry for entry in mine if entry.device not in known])
        return [_device(entry, known.get(entry.device), sensors.get(entry.device)) for entry in mine]

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """By whatever variables the backend is known to have."""
        return self._pin(devices)

    def entries(self) -> list[Listed]:
        """This backend's part of the list."""
        return [entry for entry in self._listing.read() if entry.backend == self.backend]

    def _offered(self) -> list[Listed]:
        listed = self._listing.read()
        kept: list[Listed] = []
        for backend in sorted({*self._rivals, self.backend}, key=rank):
            mine = [entry for entry in listed if entry.backend == backend]
            twice = {entry for _, entry in pairs(kept, mine)}
            kept += [entry for entry in mine if entry not in twice]
            if backend == self.backend:
                break
        return [entry for entry in kept if entry.backend == self.backend]

    def _sensors(self, mine: Sequence[Listed]) -> dict[str, Card]:
        """The kernel's card for an entry, where there is no doubt which: the only one of its vendor, or one size."""
        found: dict[str, Card] = {}
        there = [self._cards.setdefault(card.pci, card) for card in cards(self._root)]
        for maker in ("amd", "intel", "nvidia"):
            its = [card for card in there if card.vendor == maker]
            entries = [entry for entry in mine if vendor(entry.name) == maker]
            found |= dict(_sure(entries, its))
        return found


def numbered(
    listing: EngineList, wanted: Sequence[Listed], environment: Callable[[int], Mapping[str, str]]
) -> dict[int, int]:
    """The runtime's own number of each entry, which may be another than the engine's: engines sort and leave out.

    The engine is asked with each number alone until all are found. Entries that are not found keep their own number.
    """
    left = list(wanted)
    found: dict[int, int] = {}
    for number in range(NUMBERS if left else 0):
        answer = listing.with_environment(environment(number))
        if not left or not answer:
            break
        hit = next((entry for entry in left if _one_card(entry, answer)), None)
        if hit is not None:
            found[hit.index] = number
            left.remove(hit)
        if not left:
            break
    for entry in left:
        log.warning("device_number_unknown", extra={"event": "device_number_unknown", "device": entry.device})
    return {entry.index: entry.index for entry in left} | found


def _one_card(entry: Listed, answer: Sequence[Listed]) -> bool:
    return any(
        (one.backend, one.name, one.total_bytes) == (entry.backend, entry.name, entry.total_bytes) for one in answer
    )


def _sure(entries: Sequence[Listed], its: Sequence[Card]) -> Iterator[tuple[str, Card]]:
    if len(entries) == len(its) == 1:
        yield entries[0].device, its[0]
        return
    for entry in entries:
        same = [card for card in its if _same_size(entry, card)]
        if len(same) == 1 and sum(_same_size(other, same[0]) for other in entries) == 1:
            yield entry.device, same[0]


def _same_size(entry: Listed, card: Card) -> bool:
    memory = card.memory()
    return memory is not None and abs(memory[0] - entry.total_bytes) <= _NEAR * max(memory[0], entry.total_bytes)


def _device(entry: Listed, known: Device | None, card: Card | None) -> Device:
    """The engine's name and size for it; how much is free now, from whoever knows best."""
    unified = known.unified_memory if known else bool(_INTEGRATED.search(entry.name))
    free = _free(entry, known, card, unified)
    metrics = known.metrics if known else card.metrics() if card else DeviceMetrics()
    return Device(
        device=entry.device,
        backend=entry.backend,
        name=entry.name,
        uuid=known.uuid if known else None,
        memory_total_bytes=entry.total_bytes,
        memory_free_bytes=min(free, entry.total_bytes),
        metrics=metrics.model_copy(update={"memory_used_bytes": max(entry.total_bytes - free, 0)}),
        pci=known.pci if known else card.pci if card else None,
        driver=known.driver if known else None,
        unified_memory=unified,
    )


def _free(entry: Listed, known: Device | None, card: Card | None, unified: bool) -> int:
    if known is not None:
        return known.memory_free_bytes
    if unified:
        return min(entry.free_bytes, int(psutil.virtual_memory().available))
    memory = card.memory() if card is not None and _same_size(entry, card) else None
    return memory[1] if memory else entry.free_bytes
