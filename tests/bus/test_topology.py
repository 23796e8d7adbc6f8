"""`ensure` against a real server: made once, changed when needed, never reset, and a clear no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bus.connection import Bus
from bus.errors import NoStream
from bus.settings import NatsSettings
from bus.topology import (
    TopologyRefused,
    delete_message,
    differences,
    ensure,
    ensure_consumer,
    stream_info,
    waiting,
)
from schemas.subjects import Names
from schemas.topology import BucketSpec, StreamSpec, Topology, fleet, line

NAMES = Names()
QUEUE = StreamSpec("PUNA_QUEUE", ("puna.queue.*.*",), "memory", retention="workqueue", max_bytes=1 << 20)
SMALL = Topology(streams=(QUEUE,), buckets=(BucketSpec("b", storage="memory", ttl_s=60, marker_ttl_s=60),))


@pytest.fixture
async def bus(nats_server: Any) -> AsyncIterator[Bus]:
    found = await Bus.connect(NatsSettings(url=nats_server.url), name="test")
    yield found
    await found.close()


async def config_of(bus: Bus, stream: str) -> dict[str, Any]:
    info = await stream_info(bus, stream)
    assert info is not None
    return info["config"]


async def refusal(bus: Bus, topology: Topology) -> str:
    with pytest.raises(TopologyRefused) as caught:
        await ensure(bus, topology)
    return caught.value.message


async def test_the_fleets_own_topology_is_made_and_found_right_the_second_time(
    new_nats_server: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = new_nats_server(f'jetstream {{ store_dir: "{tmp_path}/store", max_mem: 8G, max_file: 1G }}')
    bus = await Bus.connect(NatsSettings(url=server.url), name="test")
    try:
        topology = fleet(NAMES)
        await ensure(bus, topology)
        for spec in (*topology.streams, *topology.buckets, *topology.blobs):
            wanted = spec.config()
            assert differences(wanted, await config_of(bus, wanted["name"])) == {}
        with caplog.at_level("INFO", "bus.topology"):
            await ensure(bus, topology)
        assert not caplog.records
    finally:
        await bus.close()


async def test_twenty_that_ensure_at_once_all_succeed(nats_server: Any) -> None:
    settings = NatsSettings(url=nats_server.url)
    buses = await asyncio.gather(*(Bus.connect(settings, name=f"p{i}") for i in range(20)))
    spec = line(NAMES, "interactive", "m")
    try:
        await asyncio.gather(*(ensure(bus, SMALL) for bus in buses))
        changed = Topology(streams=(replace(QUEUE, max_bytes=2 << 20),), buckets=SMALL.buckets)
        await asyncio.gather(*(ensure(bus, changed) for bus in buses))
        identities = await asyncio.gather(*(ensure_consumer(bus, spec) for bus in buses))
        assert len(set(identities)) == 1
        assert (await config_of(buses[0], "PUNA_QUEUE"))["max_bytes"] == 2 << 20
    finally:
        await asyncio.gather(*(bus.close() for bus in buses))


async def test_a_changed_setting_is_changed_and_what_an_operator_added_stays(bus: Bus) -> None:
    await ensure(bus, SMALL)
    theirs = await config_of(bus, "PUNA_QUEUE") | {"description": "ours", "max_msg_size": 4096}
    await bus.js_api("STREAM.UPDATE.PUNA_QUEUE", theirs)
    await bus.js_publish("puna.queue.batch.m", b"waits")
    await ensure(bus, Topology(streams=(replace(QUEUE, max_msgs_per_subject=7),)))
    now = await config_of(bus, "PUNA_QUEUE")
    assert (now["max_msgs_per_subject"], now["description"], now["max_msg_size"]) == (7, "ours", 4096)
    assert dict(await waiting(bus, "PUNA_QUEUE", "puna.queue.*.*")) == {"puna.queue.batch.m": 1}


async def test_a_storage_change_is_refused_with_the_streams_name_and_the_remedy(bus: Bus) -> None:
    await ensure(bus, SMALL)
    text = await refusal(bus, Topology(streams=(replace(QUEUE, storage="file"),)))
    assert "stream PUNA_QUEUE" in text
    assert "memory → file" in text
    assert "nats stream rm PUNA_QUEUE" in text


async def test_subjects_that_another_stream_takes_are_named_as_such(bus: Bus) -> None:
    await ensure(bus, Topology(streams=(replace(QUEUE, name="THEIRS"),)))
    assert "PUNA_PREFIX" in await refusal(bus, SMALL)


async def test_a_server_without_room_is_told_what_to_raise(bus: Bus) -> None:
    assert "max_memory_store" in await refusal(bus, Topology(streams=(replace(QUEUE, max_bytes=1 << 40),)))


async def test_a_consumer_is_made_once_and_changed_in_place(bus: Bus) -> None:
    await ensure(bus, SMALL)
    spec = line(NAMES, "batch", "Qwen2.5:Q4")
    made = await ensure_consumer(bus, spec)
    assert await ensure_consumer(bus, spec) == made
    assert await ensure_consumer(bus, replace(spec, ack_wait_s=9.0)) == made
    info = await bus.js_api(f"CONSUMER.INFO.PUNA_QUEUE.{spec.durable}")
    assert info["config"]["ack_wait"] == 9 * 10**9
    assert info["config"]["priority_groups"] == ["slots"]


async def test_a_consumer_of_a_missing_stream_is_no_stream(bus: Bus) -> None:
    with pytest.raises(NoStream, match="PUNA_QUEUE"):
        await ensure_consumer(bus, line(NAMES, "batch", "m"))


async def test_a_second_consumer_on_the_same_line_is_refused_with_a_remedy(bus: Bus) -> None:
    await ensure(bus, SMALL)
    spec = line(NAMES, "batch", "m")
    await ensure_consumer(bus, spec)
    with pytest.raises(TopologyRefused, match="nats consumer rm PUNA_QUEUE other"):
        await ensure_consumer(bus, replace(spec, durable="other"))


async def test_a_message_is_deleted_once(bus: Bus) -> None:
    assert not await delete_message(bus, "PUNA_QUEUE", 1)
    await ensure(bus, SMALL)
    ack = await bus.js_publish("puna.queue.batch.m", b"x")
    assert await delete_message(bus, ack.stream, ack.sequence)
    assert not await delete_message(bus, ack.stream, ack.sequence)


async def test_without_jetstream_the_error_says_how_to_turn_it_on(new_nats_server: Any) -> None:
    server = new_nats_server(jetstream=False)
    bus = await Bus.connect(NatsSettings(url=server.url), name="test")
    try:
        with pytest.raises(Exception, match="-js"):
            await ensure(bus, SMALL)
    finally:
        await bus.close()
