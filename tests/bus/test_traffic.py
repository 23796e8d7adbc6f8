"""Bytes to and from the server are counted, over all connections."""

from __future__ import annotations

import asyncio


async def test_bytes_are_counted_both_ways_and_over_a_restart(new_bus, nats_server) -> None:
    bus = await new_bus(nats_server)
    heard = asyncio.Event()
    bus.subscribe("t.a", lambda _: heard.set())
    sent, received = bus.traffic.sent_bytes, bus.traffic.received_bytes
    bus.publish("t.a", b"x" * 10_000)
    await asyncio.wait_for(heard.wait(), 5)
    assert 10_000 < bus.traffic.sent_bytes - sent < 10_500
    assert 10_000 < bus.traffic.received_bytes - received < 10_500
    before, session = bus.traffic.sent_bytes, bus.session
    await asyncio.to_thread(nats_server.restart)
    async with asyncio.timeout(20):
        while bus.session == session or not bus.connected:
            await asyncio.sleep(0.02)
    assert bus.traffic.sent_bytes > before
