"""Buckets and followers against a real server that is killed, frozen, and loses its bucket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from bus.connection import Bus
from bus.errors import NoStream, WrongRevision
from bus.kv import Bucket, Entry, Follower
from bus.settings import NatsSettings
from bus.topology import ensure
from schemas.errors import BusUnavailable, InvalidName, PunaError
from schemas.topology import BucketSpec, Topology

SPEC = BucketSpec("nodes", storage="memory", ttl_s=60, marker_ttl_s=60)
TOPOLOGY = Topology(buckets=(SPEC,))


class Seen:
    """All mappings that a follower handed over."""

    def __init__(self) -> None:
        self.all: list[Mapping[str, Entry]] = []
        self.changed = asyncio.Event()

    def __call__(self, entries: Mapping[str, Entry]) -> None:
        self.all.append(entries)
        self.changed.set()

    @property
    def values(self) -> dict[str, bytes]:
        return {key: entry.value for key, entry in self.all[-1].items()} if self.all else {}

    async def until(self, check: Callable[[dict[str, bytes]], bool], timeout_s: float = 10.0) -> float:
        began = time.monotonic()
        async with asyncio.timeout(timeout_s):
            while not check(self.values):
                self.changed.clear()
                await self.changed.wait()
        return time.monotonic() - began


async def repair(bus: Bus) -> None:
    await ensure(bus, TOPOLOGY)


@pytest.fixture
async def bus(nats_server: Any) -> AsyncIterator[Bus]:
    found = await Bus.connect(NatsSettings(url=nats_server.url), name="test")
    await ensure(found, TOPOLOGY)
    yield found
    await found.close()


@pytest.fixture
def bucket(bus: Bus) -> Bucket:
    return Bucket(bus, "nodes")


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def follower(bucket: Bucket, seen: Seen) -> AsyncIterator[Follower]:
    found = Follower(bucket, seen, repair=lambda: repair(bucket.bus))
    await found.start(timeout_s=5)
    yield found
    await found.stop()


# -- the bucket --------------------------------------------------------------------------------------------------------
async def test_what_was_put_is_got_with_its_revision_and_time(bucket: Bucket) -> None:
    assert await bucket.get("a.b") is None
    revision = await bucket.put("a.b", b"\x00v")
    entry = await bucket.get("a.b")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision) == ("a.b", b"\x00v", revision)
    assert abs(entry.created_at - time.time()) < 60


async def test_an_update_that_came_second_is_refused(bucket: Bucket) -> None:
    first = await bucket.create("k", b"1")
    assert await bucket.update("k", b"2", last=first) == first + 1
    with pytest.raises(WrongRevision):
        await bucket.update("k", b"3", last=first)
    with pytest.raises(WrongRevision):
        await bucket.delete("k", last=first)


async def test_create_is_refused_while_the_key_lives_and_not_after_it_was_deleted(bucket: Bucket) -> None:
    await bucket.create("k", b"1")
    with pytest.raises(WrongRevision):
        await bucket.create("k", b"2")
    await bucket.delete("k")
    assert await bucket.get("k") is None
    assert await bucket.create("k", b"3") == 3


async def test_an_expired_key_is_absent_though_its_marker_lives_and_can_be_created(
    bucket: Bucket, follower: Follower, seen: Seen
) -> None:
    await bucket.put("k", b"1", ttl_s=1)
    await seen.until(lambda values: "k" in values)
    await seen.until(lambda values: "k" not in values)
    assert await bucket.get("k") is None
    assert await bucket.create("k", b"2") > 2
    await seen.until(lambda values: values.get("k") == b"2")


async def test_of_twenty_that_create_at_once_one_succeeds(bucket: Bucket) -> None:
    results = await asyncio.gather(*(bucket.create("k", b"%d" % i) for i in range(20)), return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 1
    assert sum(isinstance(result, WrongRevision) for result in results) == 19


async def test_keys_are_those_that_live(bucket: Bucket) -> None:
    assert await bucket.keys() == []
    for key in ("b", "a", "c.d"):
        await bucket.put(key, b"")
    await bucket.delete("b")
    assert await bucket.keys() == ["a", "c.d"]


@pytest.mark.parametrize("key", ["", ".a", "a.", "a..b", "a b", "a*", ">", "ä", "a" * 2000, "a\r\nb", "a\n"])
async def test_a_key_that_is_not_encoded_is_refused(bucket: Bucket, key: str) -> None:
    with pytest.raises(InvalidName):
        await bucket.put(key, b"")
    with pytest.raises(InvalidName):
        await bucket.get(key)


async def test_a_missing_bucket_is_no_stream(bus: Bus) -> None:
    missing = Bucket(bus, "missing")
    with pytest.raises(NoStream):
        await missing.get("k")
    with pytest.raises(NoStream):
        await missing.put("k", b"")


# -- the follower ------------------------------------------------------------------------------------------------------
async def test_an_empty_bucket_is_whole_at_once(follower: Follower, seen: Seen) -> None:
    assert follower.whole
    assert [dict(entries) for entries in seen.all] == [{}]


async def test_the_first_mapping_is_the_whole_bucket(bucket: Bucket, seen: Seen) -> None:
    await asyncio.gather(*(bucket.put(f"k{i}", b"%d" % i) for i in range(300)))
    await bucket.delete("k0")
    follower = Follower(bucket, seen)
    await follower.start(timeout_s=5)
    assert len(seen.all) == 1
    assert seen.values == {f"k{i}": b"%d" % i for i in range(1, 300)}
    await follower.stop()


async def test_each_change_is_a_new_mapping_and_the_old_one_stays_as_it_was(
    bucket: Bucket, follower: Follower, seen: Seen
) -> None:
    await bucket.put("a", b"1")
    await seen.until(lambda values: values == {"a": b"1"})
    before = seen.all[-1]
    await bucket.delete("a")
    await seen.until(lambda values: values == {})
    assert before["a"].value == b"1"
    with pytest.raises(TypeError):
        before["b"] = before["a"]  # type: ignore[index]


async def test_a_burst_of_changes_is_handed_over_in_few_calls(bucket: Bucket, follower: Follower, seen: Seen) -> None:
    await asyncio.gather(*(bucket.put(f"k{i}", b"x") for i in range(500)))
    await seen.until(lambda values: len(values) == 500)
    assert len(seen.all) < 250


async def test_a_key_past_its_time_is_seen_to_go(bus: Bus) -> None:
    await ensure(bus, Topology(buckets=(BucketSpec("short", storage="memory", ttl_s=1, marker_ttl_s=60),)))
    short, seen = Bucket(bus, "short"), Seen()
    follower = Follower(short, seen)
    await follower.start(timeout_s=5)
    await short.put("k", b"1")
    await seen.until(lambda values: "k" in values)
    assert await seen.until(lambda values: values == {}) < 2.0
    await follower.stop()


@pytest.mark.parametrize("storage", ["memory", "file"])
async def test_a_server_killed_and_restarted_is_followed_within_a_fifth_of_a_second(
    nats_server: Any, bus: Bus, storage: Any
) -> None:
    topology = Topology(buckets=(BucketSpec("kept", storage=storage),))

    async def make() -> None:
        await ensure(bus, topology)

    await make()
    bus.on_session(make)
    kept, seen = Bucket(bus, "kept"), Seen()
    follower = Follower(kept, seen)
    await follower.start(timeout_s=5)
    await kept.put("k", b"1")
    await seen.until(lambda values: values == {"k": b"1"})
    nats_server.kill()
    await until(lambda: not bus.connected)
    assert seen.values == {"k": b"1"}, "the last that is known stays while the server is away"
    calls = len(seen.all)
    nats_server.start()
    await bus.ready(10)
    assert await until(lambda: follower.whole) < 0.2
    assert len(seen.all) == calls + 1
    assert seen.values == ({"k": b"1"} if storage == "file" else {})
    await kept.put("after", b"2")
    assert await seen.until(lambda values: values.get("after") == b"2") < 1.0
    await follower.stop()


async def until(check: Callable[[], Any], timeout_s: float = 10.0) -> float:
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not check():
            await asyncio.sleep(0.002)
    return time.monotonic() - began


async def test_changes_made_while_the_follower_was_away_are_not_missed(new_nats_server: Any, seen: Seen) -> None:
    server = new_nats_server()
    bus = await Bus.connect(NatsSettings(url=server.url), name="test")
    await ensure(bus, Topology(buckets=(BucketSpec("kept", storage="file"),)))
    kept = Bucket(bus, "kept")
    for key in ("gone", "stays"):
        await kept.put(key, b"1")
    follower = Follower(kept, seen)
    await follower.start(timeout_s=5)
    server.restart()
    other = await Bus.connect(NatsSettings(url=server.url), name="other")
    await Bucket(other, "kept").delete("gone")
    await Bucket(other, "kept").put("new", b"2")
    await seen.until(lambda values: values == {"stays": b"1", "new": b"2"})
    await follower.stop()
    await other.close()
    await bus.close()


async def test_a_bucket_deleted_and_made_again_is_followed_again(
    bus: Bus, bucket: Bucket, follower: Follower, seen: Seen
) -> None:
    await bucket.put("old", b"1")
    await seen.until(lambda values: "old" in values)
    await bus.js_api("STREAM.DELETE.KV_nodes")
    await repair(bus)
    await bucket.put("new", b"2")
    assert await seen.until(lambda values: values == {"new": b"2"}) < 5.0


async def test_a_bucket_deleted_by_mistake_is_made_again_by_the_repair(
    bus: Bus, bucket: Bucket, follower: Follower, seen: Seen
) -> None:
    await bus.js_api("STREAM.DELETE.KV_nodes")
    await until(lambda: not follower.whole)
    await until(lambda: follower.whole)
    await bucket.put("k", b"1")
    await seen.until(lambda values: values == {"k": b"1"})


async def test_a_follower_may_start_before_its_bucket_and_before_its_time_is_out_it_says_so(bus: Bus) -> None:
    late, seen = Bucket(bus, "late"), Seen()
    follower = Follower(late, seen)
    with pytest.raises(BusUnavailable, match="late"):
        await follower.start(timeout_s=0.3)
    await ensure(bus, Topology(buckets=(BucketSpec("late", storage="memory"),)))
    await follower.start(timeout_s=5)
    assert seen.values == {}
    await follower.stop()


async def test_a_deleted_consumer_is_noticed_by_its_silence(bus: Bus, bucket: Bucket, seen: Seen) -> None:
    follower = Follower(bucket, seen)
    await follower.start(timeout_s=5)
    consumers = (await bus.js_api("CONSUMER.NAMES.KV_nodes"))["consumers"]
    for consumer in consumers:
        await bus.js_api(f"CONSUMER.DELETE.KV_nodes.{consumer}")
    await bucket.put("k", b"1")
    assert await seen.until(lambda values: values == {"k": b"1"}) < 5.0
    await follower.stop()


async def test_a_gap_in_the_sequence_is_mended_at_once(bucket: Bucket, follower: Follower, seen: Seen) -> None:
    follower._replica.sequence -= 1
    await bucket.put("k", b"1")
    assert await seen.until(lambda values: values == {"k": b"1"}) < 0.5


async def test_a_purge_that_no_message_tells_is_found_by_the_check(bus: Bus, bucket: Bucket, seen: Seen) -> None:
    follower = Follower(bucket, seen, check_every_s=0.2)
    await follower.start(timeout_s=5)
    await bucket.put("k", b"1")
    await seen.until(lambda values: "k" in values)
    await bus.js_api("STREAM.PURGE.KV_nodes")
    await seen.until(lambda values: values == {})
    await follower.stop()


async def test_the_check_leaves_a_follower_alone_that_is_right(bucket: Bucket, seen: Seen) -> None:
    follower = Follower(bucket, seen, check_every_s=0.1)
    await bucket.put("k", b"1")
    await bucket.delete("k")
    await bucket.put("m", b"1", ttl_s=1)
    await follower.start(timeout_s=5)
    await seen.until(lambda values: values == {})
    await asyncio.sleep(2.5)  # several checks and heartbeats; that nothing happens in this time is what is tested
    assert [set(entries) for entries in seen.all] == [{"m"}, set()]
    await follower.stop()


async def test_a_frozen_server_is_followed_again_when_it_thaws(
    nats_server: Any, bucket: Bucket, follower: Follower, seen: Seen
) -> None:
    nats_server.pause()
    await until(lambda: not follower.whole)
    nats_server.resume()
    await until(lambda: follower.whole)
    await put_until_stored(bucket, "k", b"1")
    await seen.until(lambda values: values == {"k": b"1"})


async def put_until_stored(bucket: Bucket, key: str, value: bytes) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await bucket.put(key, value)
                return
            except PunaError:
                await asyncio.sleep(0.02)


async def test_an_on_change_that_fails_does_not_end_the_following(bucket: Bucket, seen: Seen) -> None:
    def fail_first(entries: Mapping[str, Entry]) -> None:
        seen(entries)
        if len(seen.all) == 1:
            raise RuntimeError("boom")

    follower = Follower(bucket, fail_first)
    await follower.start(timeout_s=5)
    await bucket.put("k", b"1")
    await seen.until(lambda values: values == {"k": b"1"})
    await follower.stop()


async def test_a_stopped_follower_is_silent_and_leaves_no_consumer(
    bus: Bus, bucket: Bucket, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.follower.UNUSED_S", 1.0)
    follower = Follower(bucket, seen)
    await follower.start(timeout_s=5)
    await follower.stop()
    await follower.stop()
    await bucket.put("k", b"1")
    await bus.flush(1)
    assert len(seen.all) == 1

    async def consumers() -> int:
        return (await bus.js_api("CONSUMER.NAMES.KV_nodes"))["total"]

    async with asyncio.timeout(15):
        while await consumers():
            await asyncio.sleep(0.1)


async def test_a_follower_keeps_up_with_a_large_bucket_under_flow_control(bucket: Bucket, seen: Seen) -> None:
    value = b"x" * 4096
    for start in range(0, 2000, 100):
        await asyncio.gather(*(bucket.put(f"k{i}", value) for i in range(start, start + 100)))
    follower = Follower(bucket, seen)
    await follower.start(timeout_s=10)
    assert len(seen.values) == 2000
    await follower.stop()
