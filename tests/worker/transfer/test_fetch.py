"""Files over HTTP: whole, in ranges, gone on with, limited, and ended."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time

import pytest

from worker.sources import Digest, RemoteFile, Signed
from worker.transfer.part import Part

MB = 1 << 20


async def test_a_small_file_comes_in_one_request(site, fetcher):
    file = site.file("small.gguf", 300_001)
    digests = await site.fetch(fetcher, file)
    assert site.is_whole(file)
    assert digests.sha256 == file.digest.hex
    assert [each["range"] for each in site.gets()] == [None]


async def test_a_large_file_comes_over_several_connections_and_is_sent_once(site, fetcher):
    file = site.file("large.gguf", 12 * MB + 17)
    await site.fetch(fetcher, file)
    assert site.is_whole(file)
    assert site.sent == file.size_bytes
    assert len(site.gets()) == 13


async def test_an_empty_file_is_a_file(site, fetcher):
    file = site.file("empty", 0)
    assert (await site.fetch(fetcher, file)).size_bytes == 0
    assert site.part.data.read_bytes() == b""


@pytest.mark.parametrize("size", [1, MB - 1, MB, MB + 1, 4 * MB - 1, 4 * MB, 4 * MB + 1, 9 * MB])
async def test_every_size_around_the_limits_of_pieces_and_buffers_comes_whole(site, fetcher, size):
    file = site.file("sized.gguf", size)
    await site.fetch(fetcher, file)
    assert site.is_whole(file)


async def test_md5_and_git_sha1_are_checked_where_the_source_has_those(site, fetcher):
    file = site.file("config.json", 4096)
    content = site.contents["config.json"]
    git = hashlib.sha1(b"blob 4096\0" + content).hexdigest()
    for algorithm, text in (("md5", hashlib.md5(content).hexdigest()), ("git-sha1", git)):
        site.part.journal.unlink(missing_ok=True)
        digest = Digest(algorithm, text)
        told = await site.fetch(fetcher, RemoteFile(file.path, file.url, 4096, digest))
        assert told.of(algorithm) == digest


async def test_a_file_of_unknown_size_comes_whole_with_and_without_a_length(site, fetcher):
    file = site.file("any.gguf", 3 * MB, sized=False)
    await site.fetch(fetcher, file)
    for kind in ("chunked", "closing"):
        site.server.fault(kind, times=1)
        site.part.journal.unlink()
        site.told.clear()
        await site.fetch(fetcher, file)
        assert site.is_whole(file)


async def test_a_cut_connection_goes_on_where_it_was(site, fetcher):
    file = site.file("cut.gguf", 12 * MB)
    site.server.fault("cut", after_bytes=700_000, times=3)
    await site.fetch(fetcher, file)
    assert site.is_whole(file)
    assert site.sent <= file.size_bytes * 1.01


async def test_a_small_file_that_is_cut_goes_on_with_if_range(site, fetcher):
    file = site.file("cut.gguf", 3 * MB)
    site.server.fault("cut", after_bytes=2 * MB, times=1)
    await site.fetch(fetcher, file)
    assert site.is_whole(file)
    first, second = site.gets()
    assert second["range"] == f"bytes={first['sent']}-{3 * MB - 1}"
    assert second["if_range"]


async def test_tries_end_and_the_error_says_what_was_wrong(site, fetcher):
    file = site.file("down.gguf", MB)
    site.server.fault("status", status=502)
    with pytest.raises(Exception, match=r"the server failed \(502\)") as caught:
        await site.fetch(fetcher, file)
    assert caught.value.code == "source_unreachable"
    assert len(site.gets()) == 4


async def test_tries_of_a_hub_have_their_own_number(site, make_fetcher):
    file = site.file("down.gguf", MB)
    site.server.fault("status", status=500, times=6)
    await site.fetch(make_fetcher(hf_max_retries=6), file, source="hf")
    assert site.is_whole(file)


async def test_a_later_call_asks_only_for_the_rest(site, fetcher, make_fetcher):
    file = site.file("later.gguf", 12 * MB)
    site.server.fault("cut", after_bytes=500_000, skip=6)
    with pytest.raises(Exception, match="cut"):
        await site.fetch(make_fetcher(download_retry=0), file)
    held = sum(site.told)
    assert 0 < held < file.size_bytes
    assert site.sent - held < 8 * MB
    site.server.reset()
    site.told.clear()
    await site.fetch(fetcher, file)
    assert site.is_whole(file)
    assert site.sent == file.size_bytes - held


async def test_a_whole_part_is_not_asked_for_again(site, fetcher):
    file = site.file("whole.gguf", 5 * MB)
    await site.fetch(fetcher, file)
    site.server.reset()
    site.told.clear()
    await site.fetch(fetcher, file)
    assert site.gets() == []
    assert site.is_whole(file)


async def test_a_part_of_other_content_is_not_gone_on_with(site, fetcher):
    await site.fetch(fetcher, site.file("one.gguf", 5 * MB))
    site.told.clear()
    file = site.file("other.gguf", 5 * MB)
    await site.fetch(fetcher, file)
    assert site.is_whole(file)


async def test_a_cancel_ends_within_100_ms_and_nothing_writes_after_it(site, fetcher, within):
    file = site.file("cancelled.gguf", 64 * MB)
    site.server.fault("throttle", bytes_per_s=8 * MB)
    work = asyncio.create_task(site.fetch(fetcher, file))
    await within(lambda: sum(site.told) > 2 * MB)
    began = time.perf_counter()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.perf_counter() - began < 0.1
    assert not [each.name for each in threading.enumerate() if each.name in ("transfer-write", "transfer-hash")]
    before = site.part.data.stat(), site.part.journal.read_bytes()
    await asyncio.sleep(0.2)
    after = site.part.data.stat(), site.part.journal.read_bytes()
    assert (before[0].st_mtime_ns, before[0].st_size) == (after[0].st_mtime_ns, after[0].st_size)


async def test_a_global_limit_holds_for_all_files_together(site, make_fetcher, tmp_path):
    fetcher = make_fetcher(bytes_per_s=4 * MB)
    files = [site.file(f"slow{number}.gguf", MB) for number in range(4)]
    began = time.perf_counter()

    async def one(number: int, file: RemoteFile) -> None:
        async def sign() -> Signed:
            return Signed(file.url)

        folder = tmp_path / f"p{number}"
        folder.mkdir()
        await fetcher.fetch(file, sign, Part(folder / "data", folder / "journal"), lambda _: None)

    await asyncio.gather(*(one(number, file) for number, file in enumerate(files)))
    assert 0.8 < time.perf_counter() - began < 1.6


async def test_a_limit_of_one_source_holds_for_it_alone(site, make_fetcher):
    file = site.file("limited.gguf", MB)
    fetcher = make_fetcher(per_source_bytes_per_s={"https": 1024, "s3": 2 * MB})
    began = time.perf_counter()
    await site.fetch(fetcher, file, source="s3")
    limited_s = time.perf_counter() - began
    site.part.journal.unlink()
    await site.fetch(fetcher, file, source="http")
    assert limited_s > 0.4
    assert time.perf_counter() - began - limited_s < 0.4


async def test_a_limit_is_no_stall(site, make_fetcher):
    file = site.file("patient.gguf", MB)
    await site.fetch(make_fetcher(bytes_per_s=256 * 1024, stall_timeout_s=0.3), file)
    assert len(site.gets()) == 1
