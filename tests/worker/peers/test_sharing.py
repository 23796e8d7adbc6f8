"""Nodes take files from each other; what goes wrong between them, and what comes of it."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from worker.sources import NoSpace, Unreachable

MB = 1 << 20


async def test_a_file_that_a_node_has_does_not_come_from_the_source(new_member: Any, site: Any) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(5 * MB + 123)
    await one.fetch(file)
    digests = await two.fetch(file)
    assert digests.sha256 == file.digest.hex
    assert two.blob(digests.sha256).read_bytes() == site.contents[file.path]
    assert site.sent == 5 * MB + 123
    assert [each.counted("puna_peer_leads_total") for each in (one, two)] == [1, 0]
    assert one.counted("puna_peer_bytes_sent_total") == two.counted("puna_peer_bytes_received_total") == 5 * MB + 123
    assert one.counted("puna_peer_bytes_received_total") == two.counted("puna_peer_bytes_sent_total") == 0
    for reason in ("chunk_checksum", "file_checksum"):
        assert two.counted("puna_peer_chunks_rejected_total", reason=reason) == 0


async def test_many_at_once_read_the_source_once(new_member: Any, site: Any) -> None:
    members = [await new_member() for _ in range(6)]
    file = site.file(12 * MB)
    site.server.fault("throttle", bytes_per_s=8 * MB)
    await asyncio.gather(*(member.fetch(file) for member in members))
    assert site.sent == 12 * MB


async def test_without_a_digest_an_etag_tells_which_file_it_is(new_member: Any, site: Any) -> None:
    members = [await new_member() for _ in range(3)]
    file = site.file(6 * MB, digest=False)
    site.server.fault("throttle", bytes_per_s=6 * MB)
    found = await asyncio.gather(*(member.fetch(file) for member in members))
    assert {each.sha256 for each in found} == {hashlib.sha256(site.contents[file.path]).hexdigest()}
    assert site.sent == 6 * MB


async def test_a_bit_that_is_wrong_on_the_only_other_disk_costs_one_download_and_is_named(
    new_member: Any, site: Any
) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(4 * MB)
    wrong = bytearray(site.contents[file.path])
    wrong[2 * MB + 7] ^= 1
    one.put(bytes(wrong), file.digest.hex)
    digests = await two.fetch(file)
    assert two.blob(digests.sha256).read_bytes() == site.contents[file.path]
    assert [(each["peer"], each["chunks"]) for each in two.heard("peer_lied")] == [("n0", 1)]
    assert two.counted("puna_peer_chunks_rejected_total", reason="file_checksum") == 1
    assert site.sent == 4 * MB


async def test_with_a_good_copy_too_only_the_wrong_chunks_are_taken_anew(new_member: Any, site: Any) -> None:
    rotten, good, asker = await new_member(), await new_member(), await new_member()
    file = site.file(8 * MB)
    content = site.contents[file.path]
    rotten.put(bytes(byte ^ 1 for byte in content), file.digest.hex)
    good.put(content, file.digest.hex)
    digests = await asker.fetch(file)
    assert asker.blob(digests.sha256).read_bytes() == content
    assert {each["peer"] for each in asker.heard("peer_lied")} == {"n0"}
    assert site.sent == 0


async def test_a_node_that_falls_silent_is_left_alone(new_member: Any, site: Any) -> None:
    """Its offer leads to a door where nobody answers."""
    one, two = await new_member(), await new_member()
    file = site.file(3 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    await one.peers.address.listens("127.0.0.1", port)
    await two.fetch(file)
    assert site.sent == 3 * MB
    silent.close()


async def test_a_chunk_that_is_not_what_its_sender_says_is_not_kept(
    new_member: Any, site: Any, key: Any, monkeypatch: Any
) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(3 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    chunk = one.peers.holdings.chunk

    def flipped(*asked: Any) -> Any:
        data, sha256 = chunk(*asked)
        return bytes([data[0] ^ 1]) + data[1:], sha256

    monkeypatch.setattr(one.peers.holdings, "chunk", flipped)
    await two.fetch(file)
    assert {each["peer"] for each in two.heard("peer_wrong")} == {"n0"}
    assert two.heard("peer_lied") == []
    rejected = two.counted("puna_peer_chunks_rejected_total", reason="chunk_checksum")
    assert rejected == len(two.heard("peer_wrong"))
    assert site.sent == 3 * MB


async def test_a_blob_that_is_deleted_while_it_is_taken_is_fetched_from_the_source(new_member: Any, site: Any) -> None:
    one, two = await new_member(upload_bytes_per_s=4 * MB), await new_member()
    file = site.file(6 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    fetching = asyncio.create_task(two.fetch(file))
    while not two.bytes or sum(two.bytes) < MB:
        await asyncio.sleep(0.01)
    one.blob(file.digest.hex).unlink()
    assert (await fetching).sha256 == file.digest.hex
    assert 0 < site.sent <= 5 * MB


async def test_after_a_cancel_nothing_is_written_and_the_next_try_goes_on(new_member: Any, site: Any) -> None:
    one, two = await new_member(upload_bytes_per_s=4 * MB), await new_member()
    file = site.file(6 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    fetching = asyncio.create_task(two.fetch(file))
    while not two.bytes or sum(two.bytes) < 2 * MB:
        await asyncio.sleep(0.01)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    before, journal = two.part(file).data.read_bytes(), two.part(file).journal.read_bytes()
    two.bytes.clear()
    again = asyncio.create_task(two.fetch(file))
    await again
    assert journal.count(b'"w"') >= 2
    assert len(before) >= 2 * MB
    assert two.bytes[0] >= 2 * MB
    assert site.sent == 0


async def test_a_leader_that_is_cancelled_lets_another_go_on_at_once(new_member: Any, site: Any) -> None:
    one, two = await new_member(lease_s=60), await new_member(lease_s=60)
    file = site.file(6 * MB)
    site.server.fault("throttle", bytes_per_s=3 * MB)
    leading = asyncio.create_task(one.fetch(file))
    while not one.bytes:
        await asyncio.sleep(0.01)
    following = asyncio.create_task(two.fetch(file))
    while not two.bytes:
        await asyncio.sleep(0.01)
    leading.cancel()
    async with asyncio.timeout(20):
        await following
    assert site.sent <= 7.5 * MB


async def test_a_disk_that_is_full_is_the_nodes_own_failure(new_member: Any, site: Any, monkeypatch: Any) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(3 * MB)
    one.put(site.contents[file.path], file.digest.hex)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker.peers.partfile.os.pwrite", full)
    with pytest.raises(NoSpace):
        await two.fetch(file)


async def test_without_nats_the_source_is_asked(new_member: Any, site: Any, nats_server: Any) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(3 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    nats_server.kill()
    while two.bus.connected:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await two.fetch(file)
    assert site.sent == 3 * MB


async def test_with_nats_frozen_the_source_is_asked_after_a_while(new_member: Any, site: Any, nats_server: Any) -> None:
    one = await new_member()
    file = site.file(2 * MB)
    nats_server.pause()
    try:
        async with asyncio.timeout(30):
            await one.fetch(file)
    finally:
        nats_server.resume()
    assert site.sent == 2 * MB


async def test_what_is_wrong_with_the_source_is_told_by_each(new_member: Any, site: Any) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(2 * MB)
    site.server.fault("status", status=500, match="/model.gguf")
    found = await asyncio.gather(one.fetch(file), two.fetch(file), return_exceptions=True)
    assert [type(each) for each in found] == [Unreachable, Unreachable]


async def test_a_node_on_another_machine_does_not_hear_of_a_loopback(new_member: Any, site: Any) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(2 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    one.peers.address.host = "another machine"
    await two.fetch(file)
    assert site.sent == 2 * MB


async def test_small_files_and_nodes_that_share_nothing_go_to_the_source(new_member: Any, site: Any) -> None:
    one, two, apart = await new_member(), await new_member(), await new_member(enabled=False)
    small, file = site.file(1000, name="config.json"), site.file(2 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    one.put(site.contents[small.path], small.digest.hex)
    await two.fetch(small)
    await apart.fetch(file)
    assert site.sent == 2 * MB + 1000
