"""What never gets better ends soon, in an error that names it; nothing that came is taken for the file."""

from __future__ import annotations

import hashlib

import pytest

from schemas.source import parse_source
from worker.sources import (
    Changed,
    Corrupt,
    Digest,
    RemoteFile,
    SourceError,
    Stalled,
    Throttled,
    Unreachable,
    Want,
)
from worker.sources.http import Web

MB = 1 << 20
SIZE = 6 * MB + 5


class NoSecrets:
    """None."""

    async def read(self, reference: str, *, key: str | None = None) -> str:
        raise AssertionError(reference)

    def variable(self, *names: str) -> str | None:
        return None


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ({"kind": "cut", "after_bytes": 0}, Unreachable, "was cut"),
        ({"kind": "cut", "after_bytes": 1000}, Unreachable, "was cut"),
        ({"kind": "reset", "phase": "connect"}, Unreachable, "reset|cut"),
        ({"kind": "reset", "phase": "request"}, Unreachable, "reset|cut"),
        ({"kind": "reset", "phase": "head"}, Unreachable, "reset|cut"),
        ({"kind": "reset", "phase": "body", "after_bytes": 1000}, Unreachable, "reset|cut"),
        ({"kind": "stall", "after_bytes": 1000, "seconds": 30}, Stalled, "bytes a second"),
        ({"kind": "deaf", "seconds": 30}, Unreachable, r"no answer in 0\.5 s"),
        ({"kind": "drip", "seconds": 0.2}, Unreachable, r"no answer in 0\.5 s"),
        ({"kind": "endless"}, Unreachable, "more than 100 headers|headers are longer"),
        ({"kind": "encoded"}, Unreachable, "compressed"),
        ({"kind": "status", "status": 500}, Unreachable, r"failed \(500\)"),
        ({"kind": "status", "status": 503, "retry_after": "0"}, Throttled, r"too many requests \(503\)"),
        ({"kind": "status", "status": 429, "retry_after": "0"}, Throttled, r"too many requests \(429\)"),
        ({"kind": "status", "status": 429, "retry_after": "date:-5"}, Throttled, r"too many requests \(429\)"),
        ({"kind": "flip", "at": SIZE - 1}, Corrupt, "what came has sha256"),
        ({"kind": "redirect", "to": "http://127.0.0.1:9/x"}, Unreachable, "127.0.0.1:9"),
    ],
    ids=lambda value: " ".join(f"{each}" for each in value.values()) if isinstance(value, dict) else "",
)
async def test_a_fault_that_stays_is_named(site, make_fetcher, fault, kind, says):
    file = site.file("model.gguf", SIZE)
    site.server.fault(**fault)
    fetcher = make_fetcher(download_retry=2, stall_timeout_s=0.4, read_timeout_s=0.5)
    with pytest.raises(kind, match=says):
        await site.fetch(fetcher, file)


@pytest.mark.parametrize("by", [-1000, 1000])
async def test_a_size_that_a_head_lies_about_is_told_before_a_byte_is_kept(site, fetcher, by):
    file = site.file("model.gguf", SIZE)
    site.server.fault("size", by=by)
    ref = parse_source(file.url)
    listing = await Web(fetcher.client).resolve(ref, want=Want(ref), secrets=NoSecrets())
    assert listing.files[0].size_bytes == SIZE + by
    with pytest.raises(Changed, match=f"has {SIZE} bytes, not {SIZE + by}"):
        await site.fetch(fetcher, listing.files[0])
    assert not site.part.data.exists()


async def test_a_file_that_is_replaced_while_it_is_read_is_never_half_of_each(site, fetcher):
    file = site.file("model.gguf", SIZE)
    site.file("new.gguf", SIZE)
    site.server.fault("replaced", by="new.gguf", skip=3)
    with pytest.raises(SourceError) as caught:
        await site.fetch(fetcher, file)
    assert isinstance(caught.value, Changed | Corrupt)
    assert "model.gguf" in caught.value.message


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
@pytest.mark.parametrize("ranged", [True, False])
async def test_a_flipped_bit_is_caught_by_a_checksum_of_the_caller(site, make_fetcher, algorithm, ranged):
    file = site.file("model.gguf", SIZE)
    told = Digest(algorithm, hashlib.new(algorithm, site.contents[file.path]).hexdigest())
    site.server.fault("flip", at=2 * MB)
    fetcher = make_fetcher(**({} if ranged else {"multipart_threshold_bytes": 1 << 40}))
    with pytest.raises(Corrupt, match=str(told)):
        await site.fetch(fetcher, RemoteFile(file.path, file.url, SIZE, told))


async def test_a_flipped_bit_is_caught_by_the_checksum_that_lies_beside_a_file(site, fetcher):
    file = site.file("model.gguf", SIZE)
    (site.root / "model.gguf.sha256").write_text(f"{file.digest.hex}  model.gguf\n")
    site.server.fault("flip", match="*/model.gguf", method="GET", at=2 * MB)
    ref = parse_source(file.url)
    want = Want(ref, files=("model.gguf", "model.gguf.sha256"))
    listing = await Web(fetcher.client).resolve(ref, want=want, secrets=NoSecrets())
    with pytest.raises(Corrupt):
        await site.fetch(fetcher, listing.files[0])


async def test_a_wish_for_no_time_at_all_is_no_cool_down_and_is_not_hammered(site, make_fetcher):
    file = site.file("model.gguf", MB)
    site.server.fault("status", status=429, retry_after="0", times=2)
    fetcher = make_fetcher(retry_interval_s=0.05)
    await site.fetch(fetcher, file)
    assert [each["status"] for each in site.gets()] == [429, 429, 200]
    assert fetcher.cooldown.left_s(site.server.origins["files"]) == 0
