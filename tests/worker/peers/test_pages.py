"""The page of files: who may read what, ranges, parts, sums."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from typing import Any

import pytest

from schemas.peer import CHUNK_BYTES, Offer
from worker.transfer.intervals import Intervals
from worker.transfer.journal import Identity, Journal

MB = 1 << 20


@pytest.fixture
async def held(new_member: Any, site: Any, key: Any) -> Any:
    """A node with a file of 3 MiB and a bit; the file; its key; an offer, as another node hears it."""
    one, two = await new_member(), await new_member()
    file = site.file(3 * MB + 5)
    one.put(site.contents[file.path], file.digest.hex)
    return one, file, key(file), await offer_of(two, key(file))


async def offer_of(member: Any, key: str) -> Offer:
    heard: asyncio.Future[Offer] = asyncio.get_running_loop().create_future()
    questions = member.peers.crowd.questions
    mark = questions.join(lambda offer: heard.done() or heard.set_result(offer))
    assert questions.ask(mark, key, 0)
    async with asyncio.timeout(5):
        return await heard


async def test_an_offer_leads_to_the_bytes(held: Any, site: Any, get: Any) -> None:
    _, file, key, offer = held
    status, headers, body = await get(f"{offer.url}/v1/blobs/{key}", offer.token)
    assert (status, body) == (200, site.contents[file.path])
    assert headers["content-length"] == str(3 * MB + 5)
    assert (offer.complete, offer.size_bytes, offer.chunk_bytes) == (True, 3 * MB + 5, CHUNK_BYTES)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, 3 * MB + 5),
        ("bytes=-7", 3 * MB - 2, 3 * MB + 5),
        (f"bytes={MB - 3}-{2 * MB + 3}", MB - 3, 2 * MB + 4),
        (f"bytes=10-{99 * MB}", 10, 3 * MB + 5),
    ],
)
async def test_ranges(held: Any, site: Any, get: Any, text: str, start: int, end: int) -> None:
    _, file, key, offer = held
    status, headers, body = await get(f"{offer.url}/v1/blobs/{key}", offer.token, text)
    assert (status, body) == (206, site.contents[file.path][start:end])
    assert headers["content-range"] == f"bytes {start}-{end - 1}/{3 * MB + 5}"


async def test_a_whole_chunk_comes_with_its_digest(held: Any, get: Any) -> None:
    _, _, key, offer = held
    _, headers, body = await get(f"{offer.url}/v1/blobs/{key}", offer.token, f"bytes={MB}-{2 * MB - 1}")
    told = headers["content-digest"].removeprefix("sha-256=:").removesuffix(":")
    assert base64.b64decode(told) == hashlib.sha256(body).digest()
    assert headers["puna-chunks"] == "0-4"


async def test_the_sums_of_all_chunks(held: Any, site: Any, get: Any) -> None:
    _, file, key, offer = held
    status, _, body = await get(f"{offer.url}/v1/blobs/{key}/chunks", offer.token)
    content = site.contents[file.path]
    sums = [hashlib.sha256(content[at : at + MB]).hexdigest() for at in range(0, len(content), MB)]
    assert status == 200
    assert json.loads(body) | {"from": 0} == {
        "size_bytes": len(content),
        "chunk_bytes": MB,
        "complete": True,
        "have": [[0, 4]],
        "from": 0,
        "sha256": sums,
    }


async def test_without_the_right_token_nothing_is_told(held: Any, get: Any) -> None:
    _, _, key, offer = held
    other = f"sha256-{'0' * 64}"
    assert (await get(f"{offer.url}/v1/blobs/{key}"))[0] == 401
    assert (await get(f"{offer.url}/v1/blobs/{key}", "x" * 43))[0] == 401
    assert (await get(f"{offer.url}/v1/blobs/{other}", offer.token))[0] == 401
    assert (await get(f"{offer.url}/v1/blobs/..%2f..%2fstore.json", offer.token))[0] == 401


async def test_a_file_that_has_gone_and_ranges_beyond_its_end(held: Any, get: Any) -> None:
    one, file, key, offer = held
    assert (await get(f"{offer.url}/v1/blobs/{key}", offer.token, f"bytes={9 * MB}-"))[0] == 416
    assert (await get(f"{offer.url}/v1/blobs/{key}", offer.token, "bytes=5-2"))[0] == 416
    assert (await get(f"{offer.url}/v1/blobs/{key}", offer.token, "lines=1-2"))[0] == 416
    one.blob(file.digest.hex).unlink()
    assert (await get(f"{offer.url}/v1/blobs/{key}", offer.token))[0] == 404


async def test_a_part_gives_what_its_journal_says_and_no_more(new_member: Any, site: Any, key: Any, get: Any) -> None:
    one, two = await new_member(), await new_member()
    file = site.file(4 * MB)
    content, part = site.contents[file.path], one.part(file)
    part.data.write_bytes(content)
    done = Intervals([(0, 2 * MB + 100), (3 * MB, 4 * MB)])
    Journal.begin(part.journal, Identity(4 * MB, str(file.digest)), done, synced=False).close()
    offer = await offer_of(two, key(file))
    assert (offer.complete, offer.have) == (False, ((0, 2), (3, 4)))
    url = f"{offer.url}/v1/blobs/{key(file)}"
    assert (await get(url, offer.token))[0] == 416
    assert (await get(url, offer.token, f"bytes={2 * MB + 100}-"))[0] == 416
    status, headers, body = await get(url, offer.token, "bytes=10-")
    assert (status, body, headers["content-range"]) == (206, content[10 : 2 * MB], f"bytes 10-{2 * MB - 1}/{4 * MB}")


async def test_a_node_that_sends_enough_says_so(new_member: Any, site: Any, key: Any, get: Any) -> None:
    one, two = await new_member(max_uploads=1, upload_bytes_per_s=MB), await new_member()
    file = site.file(3 * MB)
    one.put(site.contents[file.path], file.digest.hex)
    offer = await offer_of(two, key(file))
    url = f"{offer.url}/v1/blobs/{key(file)}"
    first = asyncio.create_task(get(url, offer.token))
    while not one.peers.uploads.active:
        await asyncio.sleep(0.01)
    assert (await get(url, offer.token, "bytes=0-9"))[0] == 503
    assert (await first)[0] == 200


async def test_tokens_are_nowhere_in_the_text_of_an_offer(held: Any) -> None:
    offer = held[3]
    assert offer.token not in repr(offer)
    assert offer.token not in str(offer)
