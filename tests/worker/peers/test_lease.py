"""The lease of who asks the source, over the lives of a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from bus.connection import Bus
from bus.settings import NatsSettings
from bus.topology import ensure
from schemas.topology import fleet
from worker.peers.lease import Lease

KEY = "sha256-" + "0" * 64


@pytest.fixture
async def bus(nats_server: Any) -> AsyncIterator[Bus]:
    made = await Bus.connect(NatsSettings.model_validate({"url": nats_server.url}), name="test")
    await ensure(made, fleet(made.names))
    yield made
    await made.close()


async def test_a_node_takes_the_lease_of_its_own_earlier_life_at_once_and_of_nobody_else(bus: Bus) -> None:
    assert await Lease(bus, "n1", KEY, 60, life="first").take()
    assert await Lease(bus, "n2", KEY, 60, life="other").take() is False
    assert await Lease(bus, "n1", KEY, 60, life="first").take() is False, "another file of the same process"
    assert await Lease(bus, "n1", KEY, 60, life="second").take()


async def test_an_earlier_life_that_was_only_frozen_does_not_take_it_back(bus: Bus) -> None:
    first, second = Lease(bus, "n1", KEY, 60, life="first"), Lease(bus, "n1", KEY, 60, life="second")
    assert await first.take() and await second.take()
    assert not await first.renew() and not first.held
    assert not await first.renew() and not await first.take()
    assert await second.renew()


@pytest.mark.parametrize("value", [b"x", b"[]", b"7", b'"n1"', b'{"node": "n1"}', b"{}"])
async def test_what_somebody_else_wrote_there_is_nobodys_earlier_life(bus: Bus, value: bytes) -> None:
    lease = Lease(bus, "n1", KEY, 60)
    await lease._bucket.put(lease._name, value)  # pyright: ignore[reportPrivateUsage]
    assert await lease.take() is False
