"""From a source to the disk: what was listed is fetched with the token at its own origin alone, and checked."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.source import parse_source
from worker.sources import Changed, Corrupt, Denied, Gated, Listing, Secrets, Source, Want
from worker.sources.asking import Patience
from worker.sources.hub import Hub
from worker.sources.s3 import ObjectStore
from worker.transfer.fetcher import Fetcher
from worker.transfer.part import Digests, Part
from worker.transfer.settings import DownloadSettings

TOKEN = "hf_verysecretindeed"
MB = 1 << 20
BIG, CONFIG = os.urandom(6 * MB), b'{"a": 1}\n'
QUICK = {"retry_interval_s": 0.01, "hf_retry_interval_s": 0.01, "multipart_threshold_bytes": MB, "piece_bytes": MB}
PATIENCE = Patience(3, 0.01)


class Way:
    """A source, and a fetcher for what it lists."""

    def __init__(self, source: Source, secrets: Secrets, work: Path) -> None:
        self.source, self.secrets, self.work = source, secrets, work
        self.fetcher = Fetcher(DownloadSettings.model_validate(QUICK))

    async def listing(self, text: str, **want: Any) -> tuple[Want, Listing]:
        made = Want(parse_source(text), **want)
        return made, await self.source.resolve(made.ref, want=made, secrets=self.secrets)

    async def fetch(self, want: Want, listing: Listing, path: str) -> Digests:
        file = listing.file(path)
        part = Part(self.work / "data", self.work / "journal")

        async def sign() -> Any:
            return await self.source.requests(file, want=want, secrets=self.secrets)

        return await self.fetcher.fetch(file, sign, part, lambda _: None, source=want.ref.scheme)


@pytest.fixture
async def hub(start: Callable[..., Any], files: Callable[..., Path], secrets: Any, tmp_path: Path) -> Any:
    """A gated repository, and a way to it with its token."""
    root = files({"o/r/main/m-Q4_K_M.gguf": BIG, "o/r/main/config.json": CONFIG})
    (root / "o/r/repo.json").write_text(json.dumps({"gated": True, "readers": [TOKEN]}))
    fake = start("hub.py", root)
    way = Way(Hub(PATIENCE), secrets(HF_ENDPOINT=fake.url, HF_TOKEN=TOKEN), tmp_path)
    yield fake, way
    way.fetcher.close()


FAULTS: list[dict[str, Any]] = [
    {"kind": "cut", "role": "storage", "after_bytes": 300_000, "times": 3},
    {"kind": "whole", "role": "storage", "times": 2},
    {"kind": "short", "role": "storage", "bytes": 100_000, "times": 3},
    {"kind": "shifted", "role": "storage", "by": 1000, "times": 1},
    {"kind": "other_range", "role": "storage", "by": 1000, "times": 1},
    {"kind": "flip", "role": "storage", "at": 2 * MB + 5, "times": 1},
    {"kind": "status", "role": "storage", "status": 503, "times": 2},
    {"kind": "status", "role": "storage", "status": 429, "retry_after": "0", "times": 1},
    {"kind": "status", "role": "storage", "status": 403, "times": 1, "skip": 1},
    {"kind": "redirect", "role": "storage", "to": "elsewhere"},
    {"kind": "reset", "role": "storage", "phase": "connect", "times": 2},
    {"kind": "reset", "role": "storage", "phase": "head", "times": 2},
    {"kind": "reset", "role": "storage", "phase": "body", "after_bytes": 200_000, "times": 3},
    {"kind": "reset", "role": "hub", "phase": "request", "match": "*/resolve/*", "times": 1},
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault['kind']}-{fault.get('status', '')}")
async def test_whatever_the_hub_does_the_bytes_are_right_and_the_token_stays_at_home(
    hub: Any, fault: dict[str, Any]
) -> None:
    fake, way = hub
    fake.fault(**fault)
    want, listing = await way.listing("hf://o/r")
    digests = await way.fetch(want, listing, "m-Q4_K_M.gguf")
    assert digests.sha256 == hashlib.sha256(BIG).hexdigest()
    assert (way.work / "data").read_bytes() == BIG
    seen = fake.seen()["requests"]
    assert {each["authorization"] for each in seen if each["role"] == "hub"} == {f"Bearer {TOKEN}"}
    assert {each["authorization"] for each in seen if each["role"] != "hub"} == {None}


async def test_a_bit_that_is_always_wrong_is_named_and_not_kept(hub: Any) -> None:
    fake, way = hub
    fake.fault("flip", role="storage", at=2 * MB + 5)
    want, listing = await way.listing("hf://o/r")
    with pytest.raises(Corrupt, match="m-Q4_K_M"):
        await way.fetch(want, listing, "m-Q4_K_M.gguf")


async def test_a_small_file_is_checked_by_the_hash_that_git_has(hub: Any) -> None:
    fake, way = hub
    want, listing = await way.listing("hf://o/r", files=("*.gguf", "*.json"))
    assert (await way.fetch(want, listing, "config.json")).sha256 == hashlib.sha256(CONFIG).hexdigest()
    for name in ("data", "journal"):
        (way.work / name).unlink(missing_ok=True)
    fake.fault("flip", match="*/config.json", at=3)
    with pytest.raises(Corrupt):
        await way.fetch(want, listing, "config.json")


async def test_a_size_that_the_listing_lies_about_is_told(hub: Any, tmp_path: Path) -> None:
    _, way = hub
    told = {"gated": True, "readers": [TOKEN], "sizes": {"m-Q4_K_M.gguf": len(BIG) + 1}}
    (tmp_path / "root/o/r/repo.json").write_text(json.dumps(told))
    want, listing = await way.listing("hf://o/r")
    with pytest.raises(Changed, match=f"m-Q4_K_M.gguf: has {len(BIG)} bytes, not {len(BIG) + 1}"):
        await way.fetch(want, listing, "m-Q4_K_M.gguf")


async def test_links_that_end_while_bytes_come_are_asked_for_anew(hub: Any) -> None:
    fake, way = hub
    fake.post("/-/links", {"lifetime_s": 0.6})
    fake.fault("throttle", role="storage", bytes_per_s=MB)
    want, listing = await way.listing("hf://o/r")
    assert (await way.fetch(want, listing, "m-Q4_K_M.gguf")).sha256 == hashlib.sha256(BIG).hexdigest()
    assert len([each for each in fake.requests(role="hub") if "/resolve/" in each["path"]]) > 2


async def test_access_that_ends_between_metadata_and_bytes_is_said(hub: Any, tmp_path: Path) -> None:
    _, way = hub
    want, listing = await way.listing("hf://o/r")
    (tmp_path / "root/o/r/repo.json").write_text(json.dumps({"gated": True}))
    with pytest.raises((Gated, Denied)):
        await way.fetch(want, listing, "m-Q4_K_M.gguf")


async def test_what_the_library_has_cached_is_had_offline(hub: Any, secrets: Any, tmp_path: Path) -> None:
    fake, _ = hub
    home = {"HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    code = "from huggingface_hub import hf_hub_download as get; get('o/r', 'm-Q4_K_M.gguf')"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **home}, check=True, capture_output=True)
    fake.reset()
    way = Way(Hub(PATIENCE), secrets(**home, HF_HUB_OFFLINE="1"), tmp_path)
    want, listing = await way.listing("hf://o/r")
    assert (await way.fetch(want, listing, "m-Q4_K_M.gguf")).sha256 == hashlib.sha256(BIG).hexdigest()
    assert fake.requests() == []
    blob = next((tmp_path / "home/hub/models--o--r/blobs").iterdir())
    blob.write_bytes(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    (way.work / "data").unlink()
    with pytest.raises(Corrupt, match="m-Q4_K_M"):
        await way.fetch(want, listing, "m-Q4_K_M.gguf")
    way.fetcher.close()


@pytest.mark.parametrize("told", ["etag", "sha256", "md5 of a multipart", "sha256 of a multipart"])
async def test_a_flipped_bit_of_an_object_is_caught(
    start: Any, files: Any, secrets: Any, tmp_path: Path, told: str
) -> None:
    root = files({"bkt/m.gguf": BIG})
    (root / "bkt/.public").touch()
    (root / "bkt/.listed.json").write_text(json.dumps({"multipart": ["m.gguf"] if "multipart" in told else []}))
    fake = start("objects.py", root)
    way = Way(ObjectStore(PATIENCE), secrets(), tmp_path)
    algorithm = told.split()[0]
    checksums = {} if told == "etag" else {"*": f"{algorithm}:{hashlib.new(algorithm, BIG).hexdigest()}"}
    want, listing = await way.listing("s3://bkt/m.gguf", checksums=checksums, parameters={"endpoint": fake.url})
    fake.fault("flip", method="GET", at=3 * MB, times=1)
    digests = await way.fetch(want, listing, "m.gguf")
    assert digests.sha256 == hashlib.sha256(BIG).hexdigest()
    for name in ("data", "journal"):
        (way.work / name).unlink(missing_ok=True)
    fake.fault("flip", method="GET", at=3 * MB)
    with pytest.raises(Corrupt, match=r"m\.gguf"):
        await way.fetch(want, listing, "m.gguf")
    way.fetcher.close()


async def test_objects_come_in_ranges_by_signed_urls_and_a_flipped_bit_is_caught(
    start: Any, files: Any, secrets: Any, tmp_path: Path
) -> None:
    key = "AKIA:secret"
    fake = start("objects.py", files({"bkt/m/a b+c#é.gguf": BIG}), "--key", key)
    way = Way(ObjectStore(PATIENCE), secrets(KEYS=key), tmp_path)
    fake.fault("cut", method="GET", after_bytes=300_000, times=3)
    want, listing = await way.listing("s3://bkt/m/", token_ref="env:KEYS", parameters={"endpoint": fake.url})
    assert (await way.fetch(want, listing, listing.main)).md5 == hashlib.md5(BIG).hexdigest()
    assert (way.work / "data").read_bytes() == BIG
    ranged = [each for each in fake.requests(method="GET") if each["range"]]
    assert len(ranged) >= 6
    assert sum(each["sent"] for each in ranged) < len(BIG) * 1.1
    for name in ("data", "journal"):
        (way.work / name).unlink(missing_ok=True)
    fake.fault("flip", method="GET", at=5)
    with pytest.raises(Corrupt):
        await way.fetch(want, listing, listing.main)
    way.fetcher.close()
