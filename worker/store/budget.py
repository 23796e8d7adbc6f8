"""How much of the disk the models of a store have, and may have."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from worker.store import layout
from worker.store.ground import Ground
from worker.store.manifest import Copy
from worker.store.settings import StoreSettings
from worker.store.space import Marks, Reservation, Reservations, no_space, victims

log = logging.getLogger(__name__)
Evict = Callable[[str], Awaitable[None]]
"""Takes a model away, so that there is room."""


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes: of all models, of the file system free and in all, and promised to downloads."""

    held_bytes: int
    free_bytes: int
    total_bytes: int
    promised_bytes: int


class Budget:
    """Owner of what is promised. `copies` are those of now."""

    def __init__(self, ground: Ground, settings: StoreSettings, copies: Callable[[], Mapping[str, Copy]]) -> None:
        self._ground = ground
        self._settings = settings
        self._copies = copies
        self._reservations = Reservations()
        self._marks = Marks(settings.high_water_percent, settings.low_water_percent, settings.budget_bytes)

    async def room(self) -> Room:
        """How much there is."""
        held, free, total = await self._ground.do(self._look)
        return Room(held, free, total, self._reservations.bytes)

    def _look(self) -> tuple[int, int, int]:
        disk = self._ground.root.disk
        return sum(entry.size_bytes for entry in disk.entries(layout.BLOBS)), *disk.space()

    async def reserve(self, bytes_: int, *, protected: Collection[str], evict: Evict) -> Reservation:
        """Promise room for a download; makes some by the water marks, unless all that may go would not be enough.
        Raises `NoSpace`, with the numbers."""
        missing = await self._missing(bytes_)
        if missing and self._settings.high_water_percent is not None:
            await self._clear(missing, protected, evict, all_or_none=True)
            missing = await self._missing(bytes_)
        if missing:
            raise self._refusal(bytes_, await self.room())
        return self._reservations.add(bytes_)

    async def collect(self, *, protected: Collection[str], evict: Evict) -> list[str]:
        """Above the high mark: let models go down to the low one. Returns which."""
        if self._settings.high_water_percent is None:
            return []
        room = await self.room()
        excess = self._marks.excess(room.held_bytes, room.free_bytes, room.total_bytes)
        return await self._clear(excess, protected, evict)

    async def _missing(self, bytes_: int) -> int:
        room, budget = await self.room(), self._settings.budget_bytes
        by_disk = self._reservations.missing(bytes_, room.free_bytes, self._settings.reserved_disk_bytes)
        if budget is None:
            return by_disk
        return max(by_disk, self._reservations.missing(bytes_, budget - room.held_bytes, 0))

    def _refusal(self, bytes_: int, room: Room) -> Exception:
        settings = self._settings
        return no_space(
            bytes_, room.free_bytes, room.promised_bytes, settings.reserved_disk_bytes,
            held_bytes=room.held_bytes, budget_bytes=settings.budget_bytes,
        )  # fmt: skip

    async def _clear(
        self, bytes_: int, protected: Collection[str], evict: Evict, *, all_or_none: bool = False
    ) -> list[str]:
        here, gone = self._ground.root.disk.root, list[str]()
        in_use = self._ground.in_use()
        copies = {model: copy for model, copy in self._copies().items() if copy.folder.is_relative_to(here)}
        busy = {model for model, copy in copies.items() if in_use(model, copy.token)}
        kept = {*protected, *busy, *self._ground.uses.models}
        for copy in victims(copies.values(), bytes_, kept, all_or_none=all_or_none):
            fields = {"event": "copy_evicted", "model": copy.model, "used_at": copy.used_at}
            log.warning("copy_evicted", extra=fields)
            await evict(copy.model)
            gone.append(copy.model)
        return [model for model in gone if model not in self._copies()]
