"""`http(s)://`, `file://`, `local://`, `pvc://`, `vendor://`: what they list, refuse and copy."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import InvalidRequest
from schemas.source import parse_source
from worker import sources
from worker.sources import (
    Ambiguous,
    BadListing,
    Changed,
    Corrupt,
    Denied,
    Digest,
    NotThere,
    RemoteFile,
    Signed,
    Unsupported,
    Want,
    find_source,
    shown_url,
)
from worker.sources.http import Web
from worker.sources.local import Folder, Vendor

MB = 1 << 20


class NoSecrets:
    """None but one."""

    async def read(self, reference: str, *, key: str | None = None) -> str:
        if reference != "env:KEY":
            raise Denied(f"{reference} is not set")
        return "hidden"

    def variable(self, *names: str) -> str | None:
        return None


async def resolve(source: Any, text: str, **want: Any) -> Any:
    ref = parse_source(text)
    return await source.resolve(ref, want=Want(ref, **want), secrets=NoSecrets())


async def test_a_url_is_listed_with_size_and_etag(site, fetcher):
    file = site.file("m-Q4_K_M.gguf", 1000)
    listing = await resolve(Web(fetcher.client), file.url)
    assert (listing.main, listing.size_bytes) == ("m-Q4_K_M.gguf", 1000)
    assert listing.files[0].etag
    assert listing.revision.startswith("etag-")
    assert await resolve(Web(fetcher.client), file.url) == listing


async def test_a_server_that_knows_no_head_is_asked_for_one_byte(site, fetcher):
    file = site.file("m.gguf", 1000)
    site.server.fault("status", status=405, method="HEAD")
    assert (await resolve(Web(fetcher.client), file.url)).size_bytes == 1000
    site.server.fault("whole", method="GET")
    assert (await resolve(Web(fetcher.client), file.url)).size_bytes == 1000


async def test_a_checksum_comes_from_the_caller_or_the_file_beside_it_when_that_is_asked_for(site, fetcher):
    file = site.file("m.gguf", 1000)
    (site.root / "m.gguf.sha256").write_text(f"{file.digest.hex}  m.gguf\n")
    web = Web(fetcher.client)
    assert (await resolve(web, file.url)).files[0].digest is None
    assert (await resolve(web, file.url, files=("m.gguf", "m.gguf.sha256"))).files[0].digest == file.digest
    assert (await resolve(web, file.url, checksums={"*": f"md5:{'0' * 32}"})).files[0].digest == Digest("md5", "0" * 32)
    with pytest.raises(BadListing, match="is wanted"):
        await resolve(web, file.url, files=("m.gguf.sha256",), checksums={"*": f"sha256:{'0' * 64}"})
    (site.root / "m.gguf.sha256").write_text("<html>no such page</html>")
    with pytest.raises(BadListing, match="holds no sha256"):
        await resolve(web, file.url, files=("m.gguf.sha256",))


async def test_a_file_that_changes_after_it_was_listed_is_told(site, fetcher):
    file = site.file("m.gguf", 5 * MB)
    listed = (await resolve(Web(fetcher.client), file.url)).files[0]
    site.file("m.gguf", 5 * MB)
    with pytest.raises(Changed, match="no longer what was listed"):
        await site.fetch(fetcher, listed)


async def test_a_token_goes_over_http_only_on_the_loopback(site, fetcher):
    file = site.file("m.gguf", 1000)
    web = Web(fetcher.client)
    await resolve(web, file.url, token_ref="env:KEY")
    assert site.server.requests(method="HEAD")[0]["authorization"] == "Bearer hidden"
    with pytest.raises(Denied, match="use https"):
        await resolve(web, "http://files.example/m.gguf", token_ref="env:KEY")
    ref = parse_source(file.url)
    elsewhere = RemoteFile("m.gguf", site.server.origins["elsewhere"] + "/m.gguf")
    assert (await web.requests(elsewhere, want=Want(ref, token_ref="env:KEY"), secrets=NoSecrets())).headers == {}


@pytest.mark.parametrize("path", ["a%00b", "%2e%2e", "a%5cb", "a%0ab", "x" * 300, "x" * 10_000, "..%2f..%2fetc"])
async def test_names_that_lead_elsewhere_are_refused_before_anybody_is_asked(site, fetcher, path):
    with pytest.raises((BadListing, InvalidRequest)) as told:
        await resolve(Web(fetcher.client, tries=0), f"{site.server.url}/{path}")
    assert site.server.requests() == []
    assert len(str(told.value)) < 400
    assert str(told.value).isprintable()


@pytest.mark.parametrize("name", [b"m\x01.gguf", b"m\\x.gguf", b"m\xff.gguf", b"m\n.gguf"])
@pytest.mark.parametrize("scheme", ["file", "local"])
async def test_names_in_a_folder_that_could_not_stand_elsewhere_are_refused(tmp_path, scheme, name):
    with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
        file.write(b"x")
    with pytest.raises(BadListing) as told:
        await resolve(Folder(), f"{scheme}://{tmp_path}")
    assert str(told.value).isprintable()


async def test_a_folder_of_folders_without_an_end_and_a_crowd_of_files_are_bounded(tmp_path, monkeypatch):
    deep = tmp_path / "deep"
    deep.joinpath(*["d"] * 40).mkdir(parents=True)
    (deep.joinpath(*["d"] * 40) / "m.gguf").write_bytes(b"x")
    with pytest.raises(NotThere):
        await resolve(Folder(), f"local://{deep}")
    (deep / "loop").symlink_to(deep)
    (deep / "m.gguf").write_bytes(b"x")
    assert (await resolve(Folder(), f"local://{deep}")).main == "m.gguf"
    monkeypatch.setattr("worker.sources.local.FILES_LIMIT", 3)
    for number in range(5):
        (deep / f"{number}.gguf").write_bytes(b"x")
    with pytest.raises(BadListing, match="more than 3 files"):
        await resolve(Folder(), f"local://{deep}")


async def test_secrets_are_in_no_text(site):
    signed = Signed("https://u:p@host/x?sig=hidden#y", {"Authorization": "hidden"})
    assert "hidden" not in f"{signed!r}{signed}"
    assert shown_url(signed.url) == "https://host/x"


async def test_a_folder_is_listed_and_its_model_chosen_by_rule(tmp_path):
    (tmp_path / "m-Q4_K_M.gguf").write_bytes(b"a")
    (tmp_path / "m-Q8_0.gguf").write_bytes(b"bb")
    listing = await resolve(Folder(), f"local://{tmp_path}")
    assert (listing.main, listing.in_place, listing.root) == ("m-Q4_K_M.gguf", True, tmp_path)
    assert (await resolve(Folder(), f"local://{tmp_path}", quant="Q8_0")).main == "m-Q8_0.gguf"
    again = await resolve(Folder(), f"local://{tmp_path}")
    assert again.revision == listing.revision
    os.utime(tmp_path / "m-Q4_K_M.gguf", (1, 1))
    assert (await resolve(Folder(), f"local://{tmp_path}")).revision != listing.revision


async def test_of_a_split_model_all_parts_are_taken_and_a_missing_one_is_told(tmp_path):
    for part in (1, 2, 3):
        (tmp_path / f"m-0000{part}-of-00003.gguf").write_bytes(b"x")
    listing = await resolve(Folder(), f"file://{tmp_path}/m-00001-of-00003.gguf")
    assert [each.role for each in listing.files] == ["model", "shard", "shard"]
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(NotThere):
        await resolve(Folder(), f"file://{tmp_path}/m-00001-of-00003.gguf")


async def test_links_that_lead_out_of_the_named_folder_are_refused(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.gguf").write_bytes(b"x")
    (inside / "m.gguf").symlink_to(tmp_path / "secret.gguf")
    with pytest.raises(Denied, match="leads out of the folder"):
        await resolve(Folder(), f"local://{inside}")
    (inside / "m.gguf").unlink()
    (inside / "real.bin").write_bytes(b"x")
    (inside / "m.gguf").symlink_to(inside / "real.bin")
    assert (await resolve(Folder(), f"local://{inside}")).main == "m.gguf"


async def test_a_claim_is_a_folder_among_the_mounts_and_nothing_outside(tmp_path):
    (tmp_path / "mnt" / "models").mkdir(parents=True)
    (tmp_path / "mnt" / "models" / "m.gguf").write_bytes(b"x")
    folder = Folder(tmp_path / "mnt")
    assert (await resolve(folder, "pvc://models/m.gguf")).in_place
    assert (await resolve(folder, "pvc://models")).main == "m.gguf"
    (tmp_path / "mnt" / "sly").symlink_to("/etc")
    (tmp_path / "mnt" / "models" / "out.gguf").symlink_to("/etc/hostname")
    for text in ("pvc://sly/hostname", "pvc://models/out.gguf"):
        with pytest.raises(Denied):
            await resolve(folder, text)


@pytest.mark.parametrize("kind", ["fifo", "missing", "empty", "folder"])
async def test_what_is_no_model_is_told_and_nothing_hangs(tmp_path, kind):
    place = tmp_path / "m.gguf"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind != "missing":
        place.mkdir()
    with pytest.raises((NotThere, Ambiguous, BadListing, Unsupported)):
        await resolve(Folder(), f"local://{place}")


async def test_a_vendor_has_nothing_to_fetch():
    listing = await resolve(Vendor(), "vendor://theirs")
    assert (listing.files, listing.in_place) == ((), True)


@pytest.mark.parametrize("scheme", ["hf", "s3", "oci", "http", "https", "file", "local", "pvc", "vendor"])
def test_every_scheme_has_a_source(scheme):
    assert find_source(scheme)


def test_a_scheme_that_nobody_reads_is_told():
    with pytest.raises(Unsupported, match="not installed"):
        find_source("gopher")


def test_our_sources_are_registered_like_a_strangers():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["puna.sources"] == dict(sources._OWN)


STRANGER = """
class Source:
    async def resolve(self, ref, *, want, secrets): ...
    async def requests(self, file, *, want, secrets): ...
"""


@pytest.fixture
def register(tmp_path, monkeypatch):
    """`register("hf = module:Class", …)`: an installed distribution that says so, with a module `stranger`."""

    def make(*lines: str) -> None:
        told = tmp_path / "site" / "stranger-1.dist-info"
        told.mkdir(parents=True)
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
        (told / "entry_points.txt").write_text("[puna.sources]\n" + "\n".join(lines))
        (tmp_path / "site" / "stranger.py").write_text(STRANGER)
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, "stranger", raising=False)

    return make


def test_a_strangers_source_wins_over_the_nodes_own_and_that_over_ours(register):
    shared = Folder()
    register("gopher = stranger:Source", "file = stranger:Source", "local = worker.sources.local:Folder")
    own = {"file": shared, "local": shared, "pvc": shared}
    assert type(find_source("gopher")).__module__ == "stranger"
    assert type(find_source("file", own)).__module__ == "stranger"
    assert find_source("local", own) is shared  # ours, though it is registered
    assert find_source("pvc", own) is shared
    assert isinstance(find_source("local"), Folder)
    with pytest.raises(Unsupported, match="gopher"):
        find_source("wais")


@pytest.mark.parametrize("what", ["nowhere:Source", "stranger:Nothing", "stranger:os"])
def test_a_strangers_source_that_cannot_be_used_is_logged_and_ours_is_taken(register, caplog, what):
    register(f"file = {what}")
    assert isinstance(find_source("file"), Folder)
    assert "source_unusable" in [record.message for record in caplog.records]


async def test_a_file_is_copied_and_checked(site, fetcher, tmp_path):
    content = os.urandom(3 * MB + 1)
    (tmp_path / "m ü%.gguf").write_bytes(content)
    listing = await resolve(
        Folder(), f"file://{tmp_path}/m ü%.gguf", checksums={"*": f"md5:{hashlib.md5(content).hexdigest()}"}
    )
    digests = await site.fetch(fetcher, listing.files[0], source="file")
    assert digests.sha256 == hashlib.sha256(content).hexdigest()
    assert site.part.data.read_bytes() == content
    await asyncio.sleep(0)
    assert sum(site.told) == len(content)
    wrong = RemoteFile("m.gguf", listing.files[0].url, len(content), Digest("sha256", "0" * 64))
    with pytest.raises(Corrupt, match=r"m\.gguf: what came has sha256"):
        await site.fetch(fetcher, wrong, source="file")


async def test_a_copy_ends_within_100_ms_of_its_cancel(site, make_fetcher, tmp_path, within):
    with (tmp_path / "big.gguf").open("wb") as file:
        file.truncate(256 * MB)
    listing = await resolve(Folder(), f"file://{tmp_path}/big.gguf")
    fetcher = make_fetcher(per_source_bytes_per_s={"file": 64 * MB})
    work = asyncio.create_task(site.fetch(fetcher, listing.files[0], source="file"))
    await within(lambda: sum(site.told) > MB)
    began = time.perf_counter()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.perf_counter() - began < 0.1


async def test_a_copy_that_was_broken_off_goes_on_where_it_was(site, make_fetcher, tmp_path, within):
    content = os.urandom(24 * MB + 7)
    (tmp_path / "big.gguf").write_bytes(content)
    listing = await resolve(Folder(), f"file://{tmp_path}/big.gguf")
    slow = make_fetcher(per_source_bytes_per_s={"file": 8 * MB})
    work = asyncio.create_task(site.fetch(slow, listing.files[0], source="file"))
    await within(lambda: sum(site.told) > 4 * MB)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    copied = site.part.data.stat().st_size
    with site.part.data.open("r+b") as file:  # so that it shows whether the beginning is copied again
        file.write(b"\0" * 16)
    site.told.clear()
    digests = await site.fetch(make_fetcher(), listing.files[0], source="file")
    assert 4 * MB <= copied < len(content)
    assert site.part.data.read_bytes() == b"\0" * 16 + content[16:]
    assert digests.sha256 == hashlib.sha256(site.part.data.read_bytes()).hexdigest()
    await asyncio.sleep(0)
    assert sum(site.told) == len(content)


async def test_a_copy_of_another_file_or_a_wrong_one_begins_anew(site, fetcher, tmp_path):
    place = tmp_path / "big.gguf"
    for _ in range(2):
        content = os.urandom(3 * MB)
        place.write_bytes(content)
        listing = await resolve(Folder(), f"file://{place}")
        assert (await site.fetch(fetcher, listing.files[0], source="file")).sha256 == hashlib.sha256(
            content
        ).hexdigest()
    with site.part.data.open("r+b") as file:  # a bit that turned in what was copied
        file.write(bytes([content[0] ^ 1]))
    told = Digest("sha256", hashlib.sha256(content).hexdigest())
    journal = site.part.journal.read_text().replace('"digest":null', f'"digest":"{told}"')
    site.part.journal.write_text(journal)
    checked = RemoteFile("m.gguf", listing.files[0].url, len(content), told)
    with pytest.raises(Corrupt):
        await site.fetch(fetcher, checked, source="file")
    assert not site.part.data.exists()
    assert (await site.fetch(fetcher, checked, source="file")).sha256 == told.hex
