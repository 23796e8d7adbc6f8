"""Servers that lie, stall, change their mind and lead astray."""

from __future__ import annotations

import asyncio
import ssl
import time

import pytest

from worker.sources import (
    Changed,
    Corrupt,
    Denied,
    Digest,
    DiskFailed,
    NotThere,
    RemoteFile,
    Signed,
    SourceError,
    Stalled,
    Throttled,
    Unreachable,
)
from worker.transfer.cooldown import Cooldown
from worker.transfer.dial import Dial
from worker.transfer.fetcher import Fetcher
from worker.transfer.settings import DownloadSettings

MB = 1 << 20
SIZE = 6 * MB + 5


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "whole"},
        {"kind": "shifted", "by": 4096, "times": 4},
        {"kind": "shifted", "by": -4096, "skip": 2, "times": 2},
        {"kind": "other_range", "by": 512},
        {"kind": "short", "bytes": 300_000},
        {"kind": "flip", "at": 5 * MB, "times": 7},
        {"kind": "flip", "at": 0, "times": 1},
        {"kind": "range", "text": "bytes 0-9/10", "skip": 1, "times": 2},
        {"kind": "range", "text": "items 1-2/3"},
        {"kind": "range", "text": "bytes 0-99999999999999999999/5", "times": 3},
        {"kind": "chunked"},
        {"kind": "closing"},
        {"kind": "longer", "by": 100, "times": 3},
        {"kind": "etag", "value": '"another"', "skip": 2, "times": 3},
        {"kind": "etag", "value": None},
        {"kind": "etag", "value": 'W/"weak"'},
        {"kind": "cut", "after_bytes": 300_000, "times": 9},
        {"kind": "cut", "after_bytes": 0, "times": 3},
        {"kind": "reset", "phase": "connect", "times": 2},
        {"kind": "reset", "phase": "request", "times": 2},
        {"kind": "reset", "phase": "head", "times": 2},
        {"kind": "reset", "phase": "body", "after_bytes": 300_000, "times": 5},
        {"kind": "reset", "phase": "body", "after_bytes": 0, "times": 2},
        {"kind": "stall", "after_bytes": 400_000, "seconds": 30, "times": 3},
        {"kind": "status", "status": 503, "times": 3},
        {"kind": "status", "status": 503, "skip": 3, "times": 2},
        {"kind": "deaf", "seconds": 30, "times": 1},
        {"kind": "drip", "seconds": 0.2, "times": 1},
        {"kind": "endless", "times": 1},
        {"kind": "encoded", "times": 1},
    ],
    ids=lambda fault: " ".join(f"{value}" for value in fault.values()),
)
async def test_whatever_the_server_does_the_content_is_right_in_the_end(site, fetcher, fault):
    file = site.file("model.gguf", SIZE)
    site.server.fault(**fault)
    digests = await site.fetch(fetcher, file)
    assert digests.sha256 == file.digest.hex
    assert site.is_whole(file)


@pytest.mark.parametrize("kind", [{"kind": "flip", "at": 3 * MB}, {"kind": "flip", "at": SIZE - 1}])
async def test_a_bit_that_is_always_wrong_fails_after_two_rounds_and_names_file_and_digests(site, fetcher, kind):
    file = site.file("model.gguf", SIZE)
    site.server.fault(**kind)
    with pytest.raises(Corrupt) as caught:
        await site.fetch(fetcher, file)
    assert "model.gguf" in caught.value.message
    assert str(file.digest) in caught.value.message
    assert caught.value.message.count("sha256:") == 2
    assert site.sent == 2 * SIZE
    assert not site.part.data.exists()
    assert not site.part.journal.exists()


async def test_a_file_of_another_size_is_no_longer_what_was_listed(site, fetcher):
    file = site.file("model.gguf", SIZE)
    other = RemoteFile(file.path, file.url, SIZE - 1, file.digest)
    with pytest.raises(Changed, match=f"has {SIZE} bytes, not {SIZE - 1}"):
        await site.fetch(fetcher, other)


async def test_a_file_that_is_replaced_in_the_middle_is_told_where_an_etag_was_listed(site, fetcher):
    file = site.file("model.gguf", SIZE, digest=False)
    site.file("new.gguf", SIZE)
    site.server.fault("replaced", by="new.gguf", skip=3)
    with pytest.raises(Changed, match="was changed"):
        await site.fetch(fetcher, file)


async def test_a_part_without_a_digest_is_gone_on_with_only_while_the_etag_is_the_same(site, make_fetcher, fetcher):
    file = site.file("model.gguf", SIZE, digest=False)
    site.server.fault("cut", after_bytes=500_000, skip=2)
    with pytest.raises(Unreachable):
        await site.fetch(make_fetcher(download_retry=0), file)
    site.server.reset()
    site.told.clear()
    new = site.file("new.gguf", SIZE)
    site.server.fault("replaced", by="new.gguf")
    await site.fetch(fetcher, file)
    assert site.part.data.read_bytes() == site.contents[new.path]
    assert sum(site.told) == SIZE


async def test_an_endless_stall_is_told_as_one(site, make_fetcher):
    file = site.file("model.gguf", SIZE)
    site.server.fault("stall", after_bytes=1000, seconds=30)
    with pytest.raises(Stalled, match="bytes a second"):
        await site.fetch(make_fetcher(stall_timeout_s=0.4, download_retry=1), file)


async def test_a_trickle_under_1_kb_a_second_is_a_stall(site, make_fetcher):
    file = site.file("model.gguf", MB)
    site.server.fault("throttle", bytes_per_s=500, times=1)
    began = time.perf_counter()
    await site.fetch(make_fetcher(stall_timeout_s=2), file)
    assert site.is_whole(file)
    assert time.perf_counter() - began < 8


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_the_credential_is_not_tried_again(site, fetcher, status):
    site.server.fault("status", status=status)
    with pytest.raises(Denied):
        await site.fetch(fetcher, site.file("model.gguf", SIZE))
    assert len(site.gets()) == 1


async def test_a_file_that_is_not_there_is_told_at_once(site, fetcher):
    file = site.file("model.gguf", SIZE)
    (site.root / "model.gguf").unlink()
    with pytest.raises(NotThere):
        await site.fetch(fetcher, file)
    assert len(site.gets()) == 1


async def test_a_token_goes_to_its_own_origin_only(site, fetcher):
    file = site.file("model.gguf", SIZE)
    site.server.fault("redirect", role="files", to="elsewhere")
    await site.fetch(fetcher, file, headers={"Authorization": "Bearer hidden"})
    assert site.is_whole(file)
    seen = {(each["role"], each["authorization"]) for each in site.gets()}
    assert seen == {("files", "Bearer hidden"), ("elsewhere", None)}
    assert len(site.server.requests(role="files")) == 1  # where it led is kept for the other pieces


async def test_a_token_does_not_come_back_when_a_stranger_redirects_home(site, fetcher):
    file = site.file("model.gguf", MB)
    site.server.fault("redirect", role="files", to="elsewhere", times=1)
    site.server.fault("redirect", role="elsewhere", to="files", times=1)
    await site.fetch(fetcher, file, headers={"Authorization": "Bearer hidden"})
    assert [each["authorization"] for each in site.gets()] == ["Bearer hidden", None, None]


async def test_redirects_that_have_expired_are_asked_for_anew(site, fetcher):
    file = site.file("model.gguf", SIZE)
    site.server.fault("redirect", role="files", to="elsewhere")
    site.server.fault("status", role="elsewhere", status=403, skip=3, times=2)
    await site.fetch(fetcher, file)
    assert site.is_whole(file)


@pytest.mark.parametrize("to", ["files", "ftp://127.0.0.1/x", "http://", "", "http://[", "file:///etc/passwd"])
async def test_redirects_in_a_circle_or_to_what_is_not_http_end(site, fetcher, to):
    site.server.fault("redirect", to=to)
    with pytest.raises(Unreachable):
        await site.fetch(fetcher, site.file("model.gguf", MB))


@pytest.mark.parametrize("status", [403, 404])
async def test_a_fresh_signature_is_asked_for_a_few_times_before_a_refusal_counts(site, make_fetcher, status):
    file = site.file("model.gguf", SIZE)
    site.server.fault("redirect", role="files", to="elsewhere")
    site.server.fault("status", role="elsewhere", status=status)
    with pytest.raises((Denied, NotThere), match=str(status)):
        await site.fetch(make_fetcher(download_retry=10), file)
    assert [each["role"] for each in site.gets()] == ["files", "elsewhere"] * 4


async def test_a_url_that_is_signed_is_signed_anew_when_it_is_refused(site, fetcher):
    file = site.file("model.gguf", SIZE)
    signed: list[str] = []
    site.server.fault("status", status=403, match="*", times=2, skip=2)

    async def sign():
        signed.append(f"{file.url}?signature={len(signed)}")
        return Signed(signed[-1])

    await fetcher.fetch(file, sign, site.part, site.told.append)
    assert site.is_whole(file)
    assert len(signed) == len(site.gets())  # one for each request


@pytest.mark.parametrize("form", ["1", "date:2"])
async def test_a_throttled_origin_is_left_alone_for_as_long_as_it_asks(site, fetcher, form):
    file = site.file("model.gguf", MB)
    site.server.fault("status", status=429, retry_after=form, times=1)
    began = time.perf_counter()
    await site.fetch(fetcher, file)
    assert time.perf_counter() - began >= 0.9
    assert [each["status"] for each in site.gets()] == [429, 200]


async def test_a_wish_for_longer_than_five_minutes_is_handed_on(site, fetcher):
    site.server.fault("status", status=429, retry_after="3600")
    with pytest.raises(Throttled) as caught:
        await site.fetch(fetcher, site.file("model.gguf", MB))
    assert caught.value.retry_after_s == 3600
    assert 3500 < fetcher.cooldown.left_s(site.server.origins["files"]) <= 3600


async def test_a_certificate_that_nobody_signed_is_refused(site, fetcher):
    with pytest.raises(Denied, match="certificate is not trusted"):
        await site.fetch(fetcher, site.file("model.gguf", MB, origin="tls"))


async def test_over_tls_with_a_known_certificate_all_is_as_without(site, tmp_path, monkeypatch):
    pem = ssl.get_server_certificate(("127.0.0.1", int(site.server.origins["tls"].rpartition(":")[2])))
    (tmp_path / "ca.pem").write_text(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    fetcher = Fetcher(DownloadSettings(multipart_threshold_bytes=MB, piece_bytes=MB))
    file = site.file("model.gguf", SIZE, origin="tls")
    await site.fetch(fetcher, file)
    fetcher.close()
    assert site.is_whole(file)
    site.server.fault("redirect", role="tls", to="elsewhere")
    with pytest.raises(Unreachable, match="not encrypted"):
        await site.fetch(Fetcher(DownloadSettings(download_retry=0)), site.file("model2.gguf", MB, origin="tls"))


async def test_nothing_listens_there(site, fetcher):
    file = site.file("model.gguf", MB)
    with pytest.raises(Unreachable):
        await site.fetch(fetcher, RemoteFile(file.path, "http://127.0.0.1:9/x", MB, file.digest))


async def test_a_name_server_that_does_not_answer_holds_up_nothing(monkeypatch):
    def hang(*_: object, **__: object) -> list[object]:
        time.sleep(2)
        return []

    monkeypatch.setattr("socket.getaddrinfo", hang)
    from worker.transfer.dial import Origin

    began = time.perf_counter()
    with pytest.raises(Unreachable, match="no connection in"):
        await Dial(0.2).open(Origin.of("http://nowhere.invalid/x"))
    assert time.perf_counter() - began < 1


async def test_a_full_disk_is_told_as_one(site, fetcher, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(SourceError, match="no space left") as caught:
        await site.fetch(fetcher, site.file("model.gguf", SIZE))
    assert caught.value.code == "no_space"
    monkeypatch.undo()
    site.told.clear()
    file = site.file("after.gguf", SIZE)
    await site.fetch(fetcher, file)  # all memory was given back
    assert site.is_whole(file)


async def test_two_writers_of_one_part_do_not_meet(site, fetcher, within):
    file = site.file("model.gguf", SIZE)
    site.server.fault("throttle", bytes_per_s=MB)
    first = asyncio.create_task(site.fetch(fetcher, file))
    await within(lambda: sum(site.told) > 0)
    with pytest.raises(DiskFailed, match="another process is writing it"):
        await site.fetch(fetcher, file)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_secrets_and_queries_are_in_no_error(site, fetcher):
    file = site.file("model.gguf", MB)
    wrong = RemoteFile(file.path, f"{file.url}x?sig=hidden", MB, Digest("md5", "0" * 32))
    with pytest.raises(NotThere) as caught:
        await site.fetch(fetcher, wrong, headers={"Authorization": "Bearer hidden"})
    assert "hidden" not in str(caught.value)
    assert "hidden" not in repr(caught.value)


async def test_a_cool_down_is_kept_to_by_all_that_share_the_leases(monkeypatch):
    class Leases:
        def __init__(self) -> None:
            self.held: dict[str, tuple[float, bytes]] = {}

        async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
            self.held[key] = (time.monotonic() + (ttl_s or 0), value)
            return 1

        async def get(self, key: str) -> object | None:
            until, value = self.held.get(key, (0.0, b""))
            return value if until > time.monotonic() else None

    from schemas.subjects import Names

    monkeypatch.setattr("worker.transfer.cooldown.LOOK_S", 0.05)
    leases, one, other = Leases(), Cooldown("a"), Cooldown("b")
    for each in (one, other):
        each.share(leases, Names())  # type: ignore[arg-type]
    await one.begin("https://hub", 1.0)
    began = time.monotonic()
    await other.over("https://elsewhere")
    assert time.monotonic() - began < 0.2
    await other.over("https://hub")
    assert 0.9 < time.monotonic() - began < 2
    assert list(leases.held) == ["cool.https=3A=2F=2Fhub"]
