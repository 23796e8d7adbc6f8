"""The devices' figures, read aside from the event loop: a driver may take its time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from schemas.node import Device
from schemas.topology import HEARTBEAT_S
from worker.accelerators import Accelerator, sample


class Devices:
    """`current` is at most one heartbeat old."""

    def __init__(self, accelerators: Sequence[Accelerator]) -> None:
        self.accelerators = accelerators
        self.current: tuple[Device, ...] = ()

    async def read(self) -> None:
        """Read all figures now."""
        self.current = await asyncio.to_thread(sample, self.accelerators)

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(HEARTBEAT_S)
