"""Bodies too large for a message."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from bus.blobs import Blobs
from bus.connection import Bus
from bus.errors import NoStream
from schemas.errors import BusUnavailable, LineFull, NotFound
from schemas.topology import BlobSpec


async def blobs(bus: Bus, *, ttl_s: float = 60, max_bytes: int = 1 << 26) -> Blobs:
    """A fresh bucket."""
    spec = BlobSpec("b", storage="memory", ttl_s=ttl_s, max_bytes=max_bytes)
    await bus.js_api("STREAM.CREATE.OBJ_b", spec.config())
    return Blobs(bus, "b")


async def stored(bus: Bus) -> int:
    """Messages that the bucket holds."""
    return (await bus.js_api("STREAM.INFO.OBJ_b"))["state"]["messages"]


@pytest.mark.parametrize("size", [0, 1, 512 * 1024, 512 * 1024 + 1, 8 << 20])
async def test_what_was_put_is_got(bus: Bus, size: int) -> None:
    found, data = await blobs(bus), os.urandom(size)
    await found.put("request/1 é", data)
    assert await found.get("request/1 é") == data


async def test_many_at_once_do_not_mix(bus: Bus) -> None:
    found = await blobs(bus)
    data = {f"r{number}": os.urandom(700_000) for number in range(8)}
    await asyncio.gather(*(found.put(name, body) for name, body in data.items()))
    assert await asyncio.gather(*(found.get(name) for name in data)) == list(data.values())


async def test_deleted_and_replaced_ones_leave_nothing_behind(bus: Bus) -> None:
    found = await blobs(bus)
    await found.put("a", bytes(2_000_000))
    await found.put("a", b"small")
    assert await found.get("a") == b"small"
    assert await stored(bus) == 2
    assert await found.delete("a")
    assert not await found.delete("a")
    assert await stored(bus) == 1
    with pytest.raises(NotFound):
        await found.get("a")


async def test_what_was_never_there_is_not_found(bus: Bus) -> None:
    with pytest.raises(NotFound, match="nothing"):
        await (await blobs(bus)).get("nothing")


async def test_a_changed_chunk_is_noticed(bus: Bus) -> None:
    found = await blobs(bus)
    await found.put("a", b"good")
    subject = (await bus.js_api("STREAM.INFO.OBJ_b", {"subjects_filter": "$O.b.C.>"}))["state"]["subjects"]
    chunk = next(iter(subject))
    await bus.js_publish(chunk, b"evil", headers={"Nats-Rollup": "sub"})
    with pytest.raises(BusUnavailable, match="checksum"):
        await found.get("a")


async def test_a_full_bucket_refuses(bus: Bus) -> None:
    found = await blobs(bus, max_bytes=1_000_000)
    with pytest.raises(LineFull):
        await found.put("a", bytes(2_000_000))


async def test_a_bucket_that_is_not_there_is_said_so(bus: Bus) -> None:
    with pytest.raises(NoStream):
        await Blobs(bus, "missing").put("a", b"x")


async def test_nats_own_client_reads_and_writes_the_same_bucket(bus: Bus, nats_server: Any) -> None:
    nats = pytest.importorskip("nats")
    found = await blobs(bus)
    await found.put("ours", b"x" * 600_000)
    client = await nats.connect(nats_server.url)
    store = await client.jetstream().object_store("b")
    assert (await store.get("ours")).data == b"x" * 600_000
    await store.put("theirs", b"y" * 600_000)
    assert await found.get("theirs") == b"y" * 600_000
    await client.close()
