"""`hf://` against a Hub that runs: what is listed, what is refused, what is asked again, and where the token goes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import subprocess
import sys
import time
import tracemalloc
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.source import parse_source
from worker.sources import (
    Ambiguous,
    BadListing,
    Denied,
    Digest,
    Gated,
    NotThere,
    Signed,
    SourceError,
    Throttled,
    Unreachable,
    Unsupported,
    Want,
    find_source,
)
from worker.sources.asking import Patience
from worker.sources.hub import Hub
from worker.sources.secrets import NodeSecrets

TOKEN = "hf_verysecretindeed"
Q4, Q8, CONFIG = b"GGUF four " * 1000, b"GGUF eight " * 1000, b'{"a": 1}\n'
REPO = {"o/r/main/m-Q4_K_M.gguf": Q4, "o/r/main/m-Q8_0.gguf": Q8, "o/r/main/config.json": CONFIG}


@pytest.fixture
def hub(start: Callable[..., Any], files: Callable[..., Path]) -> Callable[..., Any]:
    """`hub(repo_json, files)` → a Hub with these files, and this in each `repo.json`."""

    def make(content: dict[str, bytes] = REPO, *flags: str, **told: Any) -> Any:
        root = files(content)
        for repo in {"/".join(name.split("/")[:2]) for name in content}:
            (root / repo / "repo.json").write_text(json.dumps(told))
        return start("hub.py", root, *flags)

    return make


class Asking:
    """The source, asked of one Hub, with waits that are noted instead of waited."""

    def __init__(self, endpoint: str, secrets: Callable[..., NodeSecrets], **environ: str) -> None:
        self.waits: list[float] = []
        self.source = Hub(Patience(4, 1.0, 5.0, None, self._sleep, lambda: 1.0))
        self.secrets = secrets(**{"HF_ENDPOINT": endpoint} | environ)

    async def _sleep(self, wait_s: float) -> None:
        self.waits.append(wait_s)

    async def resolve(self, text: str, **want: Any) -> Any:
        ref = parse_source(text)
        return await self.source.resolve(ref, want=Want(ref, **want), secrets=self.secrets)

    async def signed(self, listing: Any, **want: Any) -> Signed:
        return await self.source.requests(listing.files[0], want=Want(listing.ref, **want), secrets=self.secrets)


class Quiet:
    """A cool-down that only notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    async def begin(self, origin: str, seconds: float) -> None:
        self.told.append(("begin", origin, seconds))

    async def over(self, origin: str) -> None:
        self.told.append(("over", origin))


@pytest.fixture(autouse=True)
def no_stored_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "stored"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def get(signed: Signed, **headers: str) -> bytes:
    """As a client does that sends headers to the first origin alone."""
    request = urllib.request.Request(signed.url, headers=headers)
    for name, value in signed.headers.items():
        request.add_unredirected_header(name, value)
    with urllib.request.urlopen(request) as answer:
        return answer.read()


def test_the_librarys_own_client_is_content_with_the_fake_hub(hub: Any, tmp_path: Path) -> None:
    fake = hub(REPO, "--page", "1")
    program = """
import sys
from huggingface_hub import HfApi, hf_hub_download
info = HfApi().model_info("o/r", files_metadata=True)
pages = [item.path for item in HfApi().list_repo_tree("o/r", recursive=True, revision=info.sha)]
assert sorted(pages) == sorted(item.rfilename for item in info.siblings), pages
for name in ("m-Q4_K_M.gguf", "config.json"):
    print(hf_hub_download("o/r", name, revision=info.sha))
"""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": fake.url, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=home, check=True, capture_output=True, text=True)
    assert [Path(line).read_bytes() for line in done.stdout.split()] == [Q4, CONFIG]


async def test_a_branch_is_pinned_to_its_commit_and_all_is_known_of_the_file(hub: Any, secrets: Any) -> None:
    fake = hub()
    listing = await Asking(fake.url, secrets).resolve("hf://o/r@main")
    assert len(listing.revision) == 40
    (file,) = listing.files
    assert (file.path, file.role, file.size_bytes, listing.main) == ("m-Q4_K_M.gguf", "model", len(Q4), "m-Q4_K_M.gguf")
    assert file.digest == Digest("sha256", hashlib.sha256(Q4).hexdigest())
    assert file.url == f"{fake.url}/o/r/resolve/{listing.revision}/m-Q4_K_M.gguf"


async def test_small_files_come_when_they_are_asked_for_with_the_hash_that_git_has(hub: Any, secrets: Any) -> None:
    listing = await Asking(hub().url, secrets).resolve("hf://o/r:q8_0", files=("*.json",))
    config = listing.file("config.json")
    git = hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    assert (config.role, config.digest, listing.main) == ("config", Digest("git-sha1", git), "m-Q8_0.gguf")


async def test_a_repository_that_moves_on_still_gives_the_bytes_that_were_listed(hub: Any, secrets: Any) -> None:
    fake = hub(REPO | {"o/r/next/m-Q4_K_M.gguf": b"GGUF newer"})
    asking = Asking(fake.url, secrets)
    before = await asking.resolve("hf://o/r")
    fake.post("/-/move", {"repo": "o/r", "revision": "main", "to": "next"})
    after = await asking.resolve("hf://o/r")
    assert after.revision != before.revision
    assert (get(await asking.signed(before)), get(await asking.signed(after))) == (Q4, b"GGUF newer")
    pinned = await asking.resolve(f"hf://o/r@{before.revision}")
    assert (pinned.revision, pinned.files) == (before.revision, before.files)
    assert (await asking.resolve("hf://o/r", revision=before.revision)).revision == before.revision


async def test_what_is_not_there_is_said_with_what_is(hub: Any, secrets: Any) -> None:
    asking = Asking(hub().url, secrets)
    for text, said in (
        ("hf://o/none", "no o/none, or it is private"),
        ("hf://o/r@v9", "no revision 'v9'"),
        ("hf://o/r#none.gguf", "m-Q8_0.gguf"),
        ("hf://o/r:Q2_K", "m-Q8_0.gguf"),
    ):
        with pytest.raises(NotThere, match=said):
            await asking.resolve(text)
    with pytest.raises(NotThere, match=r"no file fits"):
        await asking.resolve("hf://o/r", files=("*.bin",))
    assert asking.waits == []


async def test_several_models_that_fit_are_listed_at_most_forty(hub: Any, secrets: Any) -> None:
    fake = hub({f"o/r/main/m{number}.gguf": b"GGUF" for number in range(60)})
    with pytest.raises(Ambiguous, match=r"and 20 more") as told:
        await Asking(fake.url, secrets).resolve("hf://o/r")
    assert str(told.value).count("\n  m") == 40


async def test_a_repository_of_other_weights_is_refused_unless_files_are_named(hub: Any, secrets: Any) -> None:
    asking = Asking(hub({"o/r/main/model.safetensors": b"x", "o/r/main/config.json": CONFIG}).url, secrets)
    with pytest.raises(Unsupported, match=r"safetensors .* GGUF only"):
        await asking.resolve("hf://o/r")
    listing = await asking.resolve("hf://o/r", files=("*.safetensors", "config.json"))
    assert [file.path for file in listing.files] == ["model.safetensors", "config.json"]


async def test_a_checksum_that_the_hub_contradicts_is_refused_before_any_byte(hub: Any, secrets: Any) -> None:
    asking = Asking(hub().url, secrets)
    right, wrong = f"sha256:{hashlib.sha256(Q4).hexdigest()}", f"sha256:{'0' * 64}"
    assert (await asking.resolve("hf://o/r", checksums={"*": right})).files[0].digest == Digest.parse(right)
    with pytest.raises(BadListing, match="is wanted"):
        await asking.resolve("hf://o/r", checksums={"m-Q4_K_M.gguf": wrong})


@pytest.mark.parametrize("metadata_gated", [True, False])
async def test_a_gated_repository_says_where_its_terms_are(hub: Any, secrets: Any, metadata_gated: bool) -> None:
    fake = hub(gated=True, metadata_gated=metadata_gated, readers=[TOKEN])
    with pytest.raises(Gated, match=rf"accept its terms at {fake.url}/o/r with an account"):
        await Asking(fake.url, secrets).resolve("hf://o/r")
    with pytest.raises(Gated, match="the account of the token") as told:
        await Asking(fake.url, secrets, HF_TOKEN="hf_somebodyelse").resolve("hf://o/r")
    assert "somebodyelse" not in str(told.value)
    asking = Asking(fake.url, secrets, HF_TOKEN=TOKEN)
    assert get(await asking.signed(await asking.resolve("hf://o/r"))) == Q4


async def test_a_private_repository_is_hidden_from_others_and_a_wrong_token_is_denied(hub: Any, secrets: Any) -> None:
    fake = hub(private=True, readers=[TOKEN])
    with pytest.raises(NotThere, match="it is private"):
        await Asking(fake.url, secrets).resolve("hf://o/r")
    with pytest.raises(NotThere, match="the token may not read it"):
        await Asking(fake.url, secrets, HF_TOKEN="hf_other").resolve("hf://o/r")
    with pytest.raises(Denied, match="does not know the token"):
        await Asking(fake.url, secrets, HF_TOKEN="bad").resolve("hf://o/r")
    await Asking(fake.url, secrets, HF_TOKEN=TOKEN).resolve("hf://o/r")


async def test_the_token_is_the_first_of_reference_variables_and_stored(hub: Any, secrets: Any, tmp_path: Path) -> None:
    fake = hub()
    both = {"HUGGINGFACE_TOKEN": "hf_one", "HF_TOKEN": "hf_two"}
    stored = tmp_path / "stored"
    stored.write_text("hf_stored")

    async def sent(environ: dict[str, str], **want: Any) -> set[str]:
        fake.reset()
        asking = Asking(fake.url, secrets, **environ)
        listing = await asking.resolve("hf://o/r", **want)
        get(await asking.signed(listing, **want))
        return {each["authorization"] for each in fake.requests(role="hub")}

    inner = {"MINE": json.dumps({"token": "hf_ref", "other": "hf_key"})} | both
    assert await sent(inner, token_ref="env:MINE", parameters={"secretKey": "other"}) == {"Bearer hf_key"}
    assert await sent(both) == {"Bearer hf_one"}
    assert await sent({"HF_TOKEN": "hf_two"}) == {"Bearer hf_two"}
    assert await sent({}) == {"Bearer hf_stored"}
    stored.unlink()
    assert await sent({}) == {None}
    with pytest.raises(Denied, match="env:NONE is not set"):
        await sent(both, token_ref="env:NONE")


async def test_the_token_reaches_no_other_origin(hub: Any, secrets: Any) -> None:
    fake = hub(REPO, "--page", "1", gated=True, readers=[TOKEN])
    asking = Asking(fake.url, secrets, HF_TOKEN=TOKEN)
    assert get(await asking.signed(await asking.resolve("hf://o/r"))) == Q4
    fake.fault("redirect", role="hub", match="/api/*", to="elsewhere")
    with pytest.raises(SourceError):
        await asking.resolve("hf://o/r")
    seen = fake.seen()["requests"]
    assert {each["authorization"] for each in seen if each["role"] == "hub"} == {f"Bearer {TOKEN}"}
    strangers = [each for each in seen if each["role"] != "hub"]
    assert {each["role"] for each in strangers} == {"storage", "elsewhere"}
    assert {each["authorization"] for each in strangers} == {None}


async def test_a_further_page_on_another_origin_gets_no_token(hub: Any, secrets: Any) -> None:
    fake = hub(REPO, "--page", "1", "--astray")
    with pytest.raises(SourceError):
        await Asking(fake.url, secrets, HF_TOKEN=TOKEN).resolve("hf://o/r")
    (astray,) = fake.requests(role="elsewhere")
    assert astray["authorization"] is None


async def test_a_file_of_another_origin_is_asked_for_without_a_token(hub: Any, secrets: Any) -> None:
    asking = Asking(hub().url, secrets, HF_TOKEN=TOKEN)
    listing = await asking.resolve("hf://o/r")
    asking.secrets = secrets(HF_ENDPOINT="https://elsewhere.test", HF_TOKEN=TOKEN)
    assert dict((await asking.signed(listing)).headers) == {}


async def test_a_signed_request_does_not_show_its_token(
    hub: Any, secrets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake = hub()
    asking = Asking(fake.url, secrets, HF_TOKEN=TOKEN)
    fake.fault("status", role="hub", status=500, times=2)
    with caplog.at_level(logging.DEBUG):
        signed = await asking.signed(await asking.resolve("hf://o/r"))
    assert signed.headers["Authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in f"{signed} {signed!r}"
    assert TOKEN not in "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)


async def test_a_token_that_could_not_stand_in_a_header_is_no_token(hub: Any, secrets: Any) -> None:
    fake = hub()
    for token in ("a b", "a\nX-Evil: 1", "ä", "a\x00"):
        with pytest.raises(Denied) as told:
            await Asking(fake.url, secrets, HF_TOKEN=token).resolve("hf://o/r")
        assert token not in str(told.value)
    assert fake.requests() == []


@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        ({"status": 429, "retry_after": "7"}, [7.7]),
        ({"status": 503}, [1.0]),
        ({"status": 500, "times": 3}, [1.0, 2.0, 4.0]),
    ],
)
async def test_the_hub_is_asked_again_when_it_says_or_after_a_growing_while(
    hub: Any, secrets: Any, fault: dict[str, Any], waits: list[float]
) -> None:
    fake = hub()
    fake.fault("status", **{"role": "hub", "times": 1, "match": "/api/*"} | fault)
    asking = Asking(fake.url, secrets)
    await asking.resolve("hf://o/r")
    assert asking.waits == pytest.approx(waits)


async def test_a_date_to_come_back_at_is_kept_and_one_too_far_is_handed_on(hub: Any, secrets: Any) -> None:
    fake = hub()
    fake.fault("status", status=429, retry_after="date:60", times=1)
    asking = Asking(fake.url, secrets)
    await asking.resolve("hf://o/r")
    assert 55 < asking.waits[0] < 67
    fake.fault("status", status=429, retry_after="4000", times=1)
    with pytest.raises(Throttled) as told:
        await asking.resolve("hf://o/r")
    assert told.value.retry_after_s == 4000
    assert len(asking.waits) == 1


async def test_a_hub_that_is_asked_too_often_is_left_alone_by_the_whole_fleet(hub: Any, secrets: Any) -> None:
    fake = hub()
    fake.fault("status", status=429, retry_after="2", times=1)
    quiet = Quiet()
    asking = Asking(fake.url, secrets)
    asking.source = Hub(Patience(4, 1.0, 5.0, quiet, asking._sleep))
    await asking.resolve("hf://o/r")
    assert quiet.told == [("over", fake.url), ("begin", fake.url, 2.0), ("over", fake.url)]
    assert asking.waits == [0.0]


async def test_a_hub_that_keeps_failing_is_given_up_after_so_many_tries(hub: Any, secrets: Any) -> None:
    fake = hub()
    fake.fault("status", status=502)
    asking = Asking(fake.url, secrets)
    with pytest.raises(Unreachable, match="status 502"):
        await asking.resolve("hf://o/r")
    assert len(asking.waits) == 4
    assert len(fake.requests()) == 5


@pytest.mark.parametrize("page", ["/api/models/o/r", "*/tree/*"])
async def test_a_hub_that_is_slow_to_answer_takes_no_longer_than_allowed(hub: Any, secrets: Any, page: str) -> None:
    fake = hub()
    fake.fault("delay", match=page, seconds=30)
    asking = Asking(fake.url, secrets)
    asking.source = Hub(Patience(0, 1.0, 0.4))
    before = time.monotonic()
    with pytest.raises(Unreachable):
        await asking.resolve("hf://o/r")
    assert time.monotonic() - before < 3


async def test_who_stops_waiting_for_a_slow_hub_is_let_go_at_once(hub: Any, secrets: Any) -> None:
    fake = hub()
    fake.fault("delay", seconds=30)
    asked = asyncio.create_task(Asking(fake.url, secrets).resolve("hf://o/r"))
    while not fake.requests():
        await asyncio.sleep(0.01)
    asked.cancel()
    before = time.monotonic()
    await asyncio.wait([asked])
    assert asked.cancelled()
    assert time.monotonic() - before < 0.1


async def test_answers_that_are_none_are_failures_that_say_so(hub: Any, secrets: Any) -> None:
    fake = hub()
    fake.fault("garbage", times=1)
    asking = Asking(fake.url, secrets)
    await asking.resolve("hf://o/r")
    assert len(asking.waits) == 1
    with pytest.raises(Unreachable, match="cannot be asked"):
        await Asking("http://127.0.0.1:9", secrets).resolve("hf://o/r")
    with pytest.raises(Unsupported, match="no http address"):
        await Asking("ftp://hub", secrets).resolve("hf://o/r")


async def test_a_node_that_is_offline_asks_nobody(hub: Any, secrets: Any) -> None:
    fake = hub()
    asking = Asking(fake.url, secrets, HF_HUB_OFFLINE="1")
    with pytest.raises(Unsupported, match="HF_HUB_OFFLINE"):
        await asking.resolve("hf://o/r")
    assert fake.requests() == []


COMMIT = "0123456789" * 4


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as huggingface_hub makes it, with one repository."""
    folder = tmp_path / "home" / "hub" / "models--o--r"
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    for name, content in REPO.items():
        inner = Path(name).relative_to("o/r/main")
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = folder / "snapshots" / COMMIT / inner
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return folder


async def test_a_node_that_is_offline_takes_what_its_cache_has(hub: Any, secrets: Any, cache: Path) -> None:
    fake = hub()
    asking = Asking(fake.url, secrets, HF_HUB_OFFLINE="1", HF_HOME=str(cache.parents[1]))
    listing = await asking.resolve("hf://o/r:Q8_0")
    (file,) = listing.files
    assert (listing.revision, listing.main) == (COMMIT, "m-Q8_0.gguf")
    assert file.digest == Digest("sha256", hashlib.sha256(REPO["o/r/main/m-Q8_0.gguf"]).hexdigest())
    assert (
        Path(urllib.request.url2pathname(file.url.removeprefix("file://"))).read_bytes() == REPO["o/r/main/m-Q8_0.gguf"]
    )
    assert (await asking.resolve(f"hf://o/r@{COMMIT}:Q8_0")).files == listing.files
    for text in ("hf://o/other", "hf://o/r@v2", f"hf://o/r@{'f' * 40}"):
        with pytest.raises(Unsupported, match="its cache does not have"):
            await asking.resolve(text)
    assert fake.requests() == []


async def test_a_cache_leads_nowhere_else(hub: Any, secrets: Any, cache: Path, tmp_path: Path) -> None:
    asking = Asking("http://127.0.0.1:9", secrets, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(cache.parent))
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"x")
    (cache / "snapshots" / COMMIT / "sly-Q2_K.gguf").symlink_to(outside)
    with pytest.raises(NotThere):
        await asking.resolve("hf://o/r:Q2_K")
    (cache / "refs" / "main").write_text("../../../..")
    with pytest.raises(Unsupported):
        await asking.resolve("hf://o/r")
    with pytest.raises((NotThere, Unsupported)):
        await asking.source.resolve(
            parse_source("hf://o/r"),
            want=Want(parse_source("hf://o/r"), revision="../../../x"),
            secrets=asking.secrets,
        )


HOSTILE = [
    "../up.gguf",
    "/etc/passwd.gguf",
    "a\x00b.gguf",
    f"{'x' * 10_000}.gguf",
    "a\\b.gguf",
    "a//b.gguf",
    "./a.gguf",
]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_name_is_refused_where_it_is_chosen(hub: Any, secrets: Any, name: str) -> None:
    fake = hub({"o/r/main/config.json": CONFIG}, names=[name])
    with pytest.raises(BadListing) as told:
        await Asking(fake.url, secrets).resolve("hf://o/r")
    assert len(str(told.value)) < 400
    assert "\x00" not in str(told.value)
    with pytest.raises(BadListing):
        await Asking(fake.url, secrets).resolve("hf://o/r", files=("*",))


async def test_hostile_names_that_nobody_chose_do_no_harm(hub: Any, secrets: Any) -> None:
    fake = hub(REPO, names=HOSTILE[:6])
    assert (await Asking(fake.url, secrets).resolve("hf://o/r#m-Q8_0.gguf")).main == "m-Q8_0.gguf"
    with pytest.raises(NotThere) as told:
        await Asking(fake.url, secrets).resolve("hf://o/r:Q2_K")
    assert "\x00" not in str(told.value)
    assert len(str(told.value)) < 2000


@pytest.mark.parametrize("names", [["m-Q8_0.gguf"], ["m-Q8_0.gguf/inner.txt"]])
async def test_names_that_cannot_stand_beside_each_other_are_refused(hub: Any, secrets: Any, names: list[str]) -> None:
    fake = hub(REPO, names=names)
    with pytest.raises(BadListing):
        await Asking(fake.url, secrets).resolve("hf://o/r:Q8_0", files=("*",))


async def test_a_checksum_that_is_none_is_refused(hub: Any, secrets: Any) -> None:
    with pytest.raises(BadListing, match="checksum"):
        await Asking(hub(wrong={"m-Q4_K_M.gguf": "../../etc"}).url, secrets).resolve("hf://o/r")


async def test_a_hundred_thousand_files_are_listed_in_bounded_time_and_memory(hub: Any, secrets: Any) -> None:
    fake = hub(REPO, extra=100_000)
    asking = Asking(fake.url, secrets)
    asking.source = Hub(Patience(0, 1.0, 100.0))
    tracemalloc.start()
    try:
        before = time.monotonic()
        listing = await asking.resolve("hf://o/r")
        taken_s, peak = time.monotonic() - before, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [file.path for file in listing.files] == ["m-Q4_K_M.gguf"]
    assert taken_s < 60
    assert peak < 128 << 20


async def test_many_look_at_once(hub: Any, secrets: Any) -> None:
    asking = Asking(hub().url, secrets)
    found = await asyncio.gather(*(asking.resolve("hf://o/r") for _ in range(20)))
    assert len({listing.revision for listing in found}) == 1


def test_it_is_found_by_its_scheme() -> None:
    assert isinstance(find_source("hf"), Hub)


async def test_signed_urls_end_and_are_given_anew(hub: Any, secrets: Any) -> None:
    fake = hub()
    asking = Asking(fake.url, secrets)
    listing = await asking.resolve("hf://o/r")
    fake.post("/-/links", {"lifetime_s": -1})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        get(await asking.signed(listing))
    fake.post("/-/links", {"lifetime_s": 60})
    assert get(await asking.signed(listing), Range="bytes=5-9") == Q4[5:10]
