"""What the tests of the bus share: buses on real servers, and something that waits for messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from bus.connection import Bus
from bus.settings import NatsSettings

NewBus = Callable[..., Awaitable[Bus]]


class Heard:
    """A handler that keeps what it hears, and can be waited for."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._more = asyncio.Event()

    def __call__(self, *item: Any) -> None:
        """Keep it: alone if it is one thing, else as a tuple."""
        self.items.append(item[0] if len(item) == 1 else item)
        self._more.set()

    async def count(self, least: int, timeout_s: float = 5.0) -> list[Any]:
        """Until so many were heard."""
        async with asyncio.timeout(timeout_s):
            while len(self.items) < least:
                self._more.clear()
                await self._more.wait()
        return self.items


@pytest.fixture
def heard() -> Heard:
    """A handler to subscribe with: `.items`, `await .count(n)`."""
    return Heard()


@pytest.fixture
def new_heard() -> type[Heard]:
    """For tests that need more than one `heard`."""
    return Heard


@pytest.fixture
async def new_bus() -> AsyncIterator[NewBus]:
    """Factory: `await new_bus(server_or_url, name="test", **settings)` → a connected bus, closed after the test."""
    made: list[Bus] = []

    async def make(server: Any, *, name: str = "test", timeout_s: float = 10.0, **settings: Any) -> Bus:
        url = server if isinstance(server, str) else server.url
        bus = await Bus.connect(NatsSettings(url=url, **settings), name=name, timeout_s=timeout_s)
        made.append(bus)
        return bus

    yield make
    for bus in made:
        await bus.close()


@pytest.fixture
async def bus(nats_server: Any, new_bus: NewBus) -> Bus:
    """A bus on `nats_server`."""
    return await new_bus(nats_server)
