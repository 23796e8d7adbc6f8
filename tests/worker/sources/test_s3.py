"""`s3://` and `oci://` against an object store that runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from schemas.source import parse_source
from worker.sources import (
    BadListing,
    Denied,
    Digest,
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
from worker.sources.s3 import ObjectStore
from worker.sources.s3keys import Keys, read_keys
from worker.sources.s3place import place_of

KEY = "AKIAEXAMPLE:s3cr3t/with+marks="
ACCESS, SECRET = KEY.split(":")
Q4, Q8 = b"GGUF four " * 1000, b"GGUF eight " * 1000
BUCKET = {"bkt/models/m-Q4_K_M.gguf": Q4, "bkt/models/m-Q8_0.gguf": Q8, "bkt/other/x.gguf": b"x"}


@pytest.fixture
def store(start: Callable[..., Any], files: Callable[..., Path]) -> Callable[..., Any]:
    """`store(files, public=False)` → a store with these, whose key is `KEY`."""

    def make(content: dict[str, bytes] = BUCKET, *, public: bool = False, **told: Any) -> Any:
        root = files(content)
        if public:
            (root / "bkt" / ".public").touch()
        (root / "bkt" / ".listed.json").write_text(json.dumps(told))
        return start("objects.py", root, "--key", KEY, "--page", "2")

    return make


class Asking:
    """The source, asked of one store, with waits that are noted instead of waited."""

    def __init__(self, endpoint: str | None, secrets: Any, **environ: str) -> None:
        self.waits: list[float] = []
        self.source = ObjectStore(Patience(2, 1.0, 5.0, None, self._sleep, lambda: 1.0))
        self.secrets = secrets(**{"KEYS": KEY} | environ)
        self.endpoint = {"endpoint": endpoint} if endpoint else {}

    async def _sleep(self, wait_s: float) -> None:
        self.waits.append(wait_s)

    def want(self, text: str, **want: Any) -> Want:
        parameters = self.endpoint | want.pop("parameters", {})
        return Want(parse_source(text), **{"token_ref": "env:KEYS"} | want, parameters=parameters)

    async def resolve(self, text: str, **want: Any) -> Any:
        made = self.want(text, **want)
        return await self.source.resolve(made.ref, want=made, secrets=self.secrets)

    async def fetch(self, text: str, name: str | None = None, **want: Any) -> bytes:
        made = self.want(text, **want)
        listing = await self.source.resolve(made.ref, want=made, secrets=self.secrets)
        file = listing.file(name or listing.main)
        return get(await self.source.requests(file, want=made, secrets=self.secrets))


def get(signed: Signed, **headers: str) -> bytes:
    request = urllib.request.Request(signed.url, headers={**signed.headers, **headers})
    with urllib.request.urlopen(request) as answer:
        return answer.read()


async def test_one_object_is_asked_for_alone_with_its_md5(store: Any, secrets: Any) -> None:
    fake = store()
    listing = await Asking(fake.url, secrets).resolve("s3://bkt/models/m-Q8_0.gguf")
    (file,) = listing.files
    assert (file.path, file.size_bytes, file.role, listing.main) == ("m-Q8_0.gguf", len(Q8), "model", "m-Q8_0.gguf")
    assert file.digest == Digest("md5", hashlib.md5(Q8).hexdigest())
    assert file.url == f"{fake.url}/bkt/models/m-Q8_0.gguf"
    assert [each["method"] for each in fake.requests()] == ["HEAD"]


async def test_below_a_folder_files_are_chosen_by_the_rules_of_repositories(store: Any, secrets: Any) -> None:
    fake = store(BUCKET | {"bkt/models/deep/config.json": b"{}"})
    asking = Asking(fake.url, secrets)
    assert (await asking.resolve("s3://bkt/models/")).main == "m-Q4_K_M.gguf"
    assert (await asking.resolve("s3://bkt/models/", quant="q8_0")).main == "m-Q8_0.gguf"
    listing = await asking.resolve("s3://bkt/models/", files=("m-Q8_0.gguf", "*.json"))
    assert [file.path for file in listing.files] == ["m-Q8_0.gguf", "deep/config.json"]
    assert len(fake.requests(method="GET")) > 3  # several pages each


async def test_a_split_model_comes_with_all_its_parts(store: Any, secrets: Any) -> None:
    names = [f"big-{part:05}-of-00003.gguf" for part in (1, 2, 3)]
    fake = store({f"bkt/m/{name}": b"GGUF" for name in names})
    listing = await Asking(fake.url, secrets).resolve(f"s3://bkt/m/{names[0]}")
    assert [(file.path, file.role) for file in listing.files] == [
        (names[0], "model"),
        (names[1], "shard"),
        (names[2], "shard"),
    ]


async def test_bytes_come_by_signed_urls_in_ranges_and_under_odd_names(store: Any, secrets: Any) -> None:
    name = "a b%20c#d+é~&=.gguf"
    fake = store(BUCKET | {f"bkt/models/{name}": b"odd bytes"})
    asking = Asking(fake.url, secrets)
    assert await asking.fetch("s3://bkt/models/m-Q4_K_M.gguf") == Q4
    assert await asking.fetch("s3://bkt/models/", name, files=("a*",)) == b"odd bytes"
    want = asking.want("s3://bkt/models/m-Q4_K_M.gguf")
    listing = await asking.resolve(want.ref.text)
    signed = await asking.source.requests(listing.files[0], want=want, secrets=asking.secrets)
    assert get(signed, Range="bytes=5-9", **{"If-Range": listing.files[0].etag}) == Q4[5:10]
    assert "Signature" not in f"{signed} {signed!r}"


async def test_the_revision_changes_with_the_content(store: Any, secrets: Any, tmp_path: Path) -> None:
    asking = Asking(store().url, secrets)
    before = await asking.resolve("s3://bkt/models/")
    assert (await asking.resolve("s3://bkt/models/")).revision == before.revision
    (tmp_path / "root/bkt/models/m-Q4_K_M.gguf").write_bytes(b"newer")
    assert (await asking.resolve("s3://bkt/models/")).revision != before.revision


async def test_without_a_digest_it_is_said_that_nothing_vouches_for_the_bytes(
    store: Any, secrets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asking = Asking(store(multipart=["models/m-Q4_K_M.gguf"]).url, secrets)
    with caplog.at_level(logging.WARNING):
        listing = await asking.resolve("s3://bkt/models/m-Q4_K_M.gguf")
        assert listing.files[0].digest is None
        assert [record.message for record in caplog.records] == ["source_unvouched"]
        caplog.clear()
        given = f"sha256:{hashlib.sha256(Q4).hexdigest()}"
        listing = await asking.resolve("s3://bkt/models/m-Q4_K_M.gguf", checksums={"*": given})
        assert str(listing.files[0].digest) == given
        assert caplog.records == []


@pytest.mark.parametrize(
    "kept",
    [
        KEY,
        json.dumps({"AccessKeyId": ACCESS, "SecretAccessKey": SECRET}),
        f"[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n",
        f"aws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}",
    ],
)
async def test_keys_are_read_as_people_keep_them(store: Any, secrets: Any, kept: str) -> None:
    assert await Asking(store().url, secrets, KEYS=kept).fetch("s3://bkt/models/m-Q4_K_M.gguf") == Q4


async def test_each_way_of_asking_finds_its_keys(
    store: Any, secrets: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = store()
    path = tmp_path / "credentials"
    path.write_text(f"[mine]\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n")
    environ = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SHARED_CREDENTIALS_FILE": str(path)}
    asking = Asking(fake.url, secrets, **environ)
    text = "s3://bkt/models/m-Q4_K_M.gguf"
    for name, value in {
        "AWS_SESSION_TOKEN": "x",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_ENDPOINT_URL_S3": "http://no",
    }.items():
        monkeypatch.setenv(name, value)  # of this process: what obstore would take by itself
    for parameters in ({"auth": "keys"}, {"auth": "static"}):
        assert await asking.fetch(text, parameters=parameters) == Q4
    for parameters in ({}, {"auth": "env"}, {"profile": "mine"}, {"auth": "user_principal", "profile": "mine"}):
        assert await asking.fetch(text, token_ref=None, parameters=parameters) == Q4
    with pytest.raises(Denied, match="the store refuses"):
        await asking.fetch(text, token_ref=None, parameters={"auth": "anonymous"})
    with pytest.raises(Denied, match="no profile 'none'"):
        await asking.fetch(text, token_ref=None, parameters={"profile": "none"})
    with pytest.raises(Unsupported, match="none of keys"):
        await asking.fetch(text, parameters={"auth": "magic"})
    for each in fake.requests():
        assert "x-amz-security-token" not in each["path"].lower()


async def test_a_public_bucket_is_read_without_keys(store: Any, secrets: Any) -> None:
    fake = store(public=True)
    assert await Asking(fake.url, secrets).fetch("s3://bkt/models/m-Q4_K_M.gguf", token_ref=None) == Q4
    assert {each["authorization"] for each in fake.requests()} == {None}


@pytest.mark.parametrize(
    "text", ["", "nothing", "a:b:c:d", "a b:c", "{}", "{", "[other]\na=b", "[default]\nuser=x\nfingerprint=y"]
)
def test_what_holds_no_keys_is_denied_without_being_shown(text: str) -> None:
    with pytest.raises(Denied) as told:
        read_keys(text, "default", "env:KEYS")
    assert text == "" or text not in str(told.value)


def test_keys_do_not_show_themselves() -> None:
    assert SECRET not in repr(read_keys(KEY, "default", "env:KEYS"))
    assert ACCESS not in repr(read_keys(KEY, "default", "env:KEYS"))


async def test_no_failure_shows_a_key_or_a_signature(
    store: Any, secrets: Any, caplog: pytest.LogCaptureFixture
) -> None:
    fake = store()
    asking = Asking(fake.url, secrets)
    for fault, kind in (
        ({"status": 503}, Unreachable),
        ({"status": 429}, Throttled),
        ({"status": 403}, Denied),
        ({"status": 401}, Denied),
        ({"status": 301}, SourceError),
        ({"status": 404}, NotThere),
    ):
        fake.reset()
        fake.fault("status", **fault)
        for text in ("s3://bkt/models/m-Q4_K_M.gguf", "s3://bkt/models/"):
            with caplog.at_level(logging.DEBUG), pytest.raises(kind) as told:
                await asking.resolve(text)
            shown = f"{told.value} {told.value.__cause__!r}"
            assert not any(word in shown for word in (SECRET, "Signature", "Debug source"))
    assert asking.waits == [1.0, 2.0] * 4
    assert SECRET not in "".join(str(vars(record)) for record in caplog.records)


async def test_a_wrong_secret_is_denied(store: Any, secrets: Any) -> None:
    with pytest.raises(Denied, match="check the keys"):
        await Asking(store().url, secrets, KEYS=f"{ACCESS}:wrong").resolve("s3://bkt/models/")


async def test_what_is_not_there_is_said_with_the_way_to_mean_a_folder(store: Any, secrets: Any) -> None:
    asking = Asking(store().url, secrets)
    for text in ("s3://bkt/models", "s3://bkt/none.gguf", "s3://none/models/x.gguf"):
        with pytest.raises(NotThere, match="end it with /"):
            await asking.resolve(text)
    with pytest.raises(NotThere, match="nothing"):
        await asking.resolve("s3://bkt/none/")


async def test_signed_requests_and_keys_follow_no_redirect(store: Any, secrets: Any) -> None:
    fake = store()
    fake.fault("redirect", role="objects", to="elsewhere")
    asking = Asking(fake.url, secrets)
    with pytest.raises(SourceError):
        await asking.resolve("s3://bkt/models/m-Q4_K_M.gguf")
    assert {each["authorization"] for each in fake.requests(role="elsewhere")} <= {None}


@pytest.mark.parametrize(
    "name", ["models/../../up.gguf", "models//a.gguf", "models/a\\b.gguf", f"models/{'x' * 900}.gguf"]
)
async def test_hostile_keys_are_refused(store: Any, secrets: Any, name: str) -> None:
    asking = Asking(store({"bkt/models/x": b""}, names=[name]).url, secrets)
    with pytest.raises(BadListing):
        await asking.resolve("s3://bkt/models/", files=("*.gguf",))


async def test_a_store_that_does_not_answer_takes_no_longer_than_allowed(store: Any, secrets: Any) -> None:
    fake = store()
    fake.fault("delay", seconds=20)
    asking = Asking(fake.url, secrets)
    asking.source = ObjectStore(Patience(0, 1.0, 0.3))
    with pytest.raises(Unreachable, match="took too long"):
        await asyncio.wait_for(asking.resolve("s3://bkt/models/"), 5)
    with pytest.raises(Unreachable):
        await Asking("http://127.0.0.1:9", secrets).resolve("s3://bkt/models/")


async def test_oracles_store_is_asked_by_its_s3_interface(store: Any, secrets: Any, tmp_path: Path) -> None:
    ref = parse_source("oci://n/tenancy/b/bkt/o/models/m-Q4_K_M.gguf")
    place = place_of(ref, {"region": "eu-frankfurt-1"}, Keys("signed"), secrets())
    assert place.url("a/b.gguf") == "https://tenancy.compat.objectstorage.eu-frankfurt-1.oraclecloud.com/bkt/a/b.gguf"
    with pytest.raises(Unsupported, match=r"parameters\.region"):
        place_of(ref, {}, Keys("signed"), secrets())
    config = tmp_path / "oci"
    config.write_text(f"[DEFAULT]\nregion=eu-frankfurt-1\naws_access_key_id={ACCESS}\naws_secret_access_key={SECRET}\n")
    asking = Asking(store().url, secrets, OCI_CONFIG_FILE=str(config))
    parameters = {"auth": "user_principal"}
    assert await asking.fetch(ref.text, token_ref=None, parameters=parameters) == Q4
    with pytest.raises(Unsupported, match="customer secret key"):
        await asking.resolve(ref.text, token_ref=None, parameters={"auth": "instance_principal"})


@pytest.mark.parametrize(
    ("text", "parameters", "url"),
    [
        ("s3://bkt/k", {}, "https://bkt.s3.us-east-1.amazonaws.com/k"),
        ("s3://bkt/k", {"region": "eu-west-1"}, "https://bkt.s3.eu-west-1.amazonaws.com/k"),
        ("s3://b.kt/k", {}, "https://s3.us-east-1.amazonaws.com/b.kt/k"),
        ("s3://bkt/k", {"path_style": "true"}, "https://s3.us-east-1.amazonaws.com/bkt/k"),
        ("s3://bkt/k", {"endpoint": "http://minio:9000/"}, "http://minio:9000/bkt/k"),
        ("s3://bkt/k", {"endpoint": "https://ceph", "path_style": "false"}, "https://bkt.ceph/k"),
    ],
)
async def test_a_bucket_is_found_where_its_store_has_it(
    secrets: Any, text: str, parameters: dict[str, str], url: str
) -> None:
    ref = parse_source(text)
    want, kept = Want(ref, token_ref="env:KEYS", parameters=parameters), secrets(KEYS=KEY)
    assert place_of(ref, parameters, Keys("signed"), kept).url("k") == url
    file = Asking(None, secrets).source
    signed = await file.requests(type("File", (), {"path": "k", "url": url})(), want=want, secrets=kept)
    assert signed.url.startswith(f"{url}?X-Amz-")


@pytest.mark.parametrize(
    "parameters", [{"endpoint": "minio"}, {"endpoint": "ftp://x"}, {"path_style": "no"}, {"region": "a/b"}]
)
def test_an_address_that_is_none_is_refused(secrets: Any, parameters: dict[str, str]) -> None:
    with pytest.raises(Unsupported):
        place_of(parse_source("s3://bkt/k"), parameters, Keys("signed"), secrets())


def test_a_node_without_the_extra_says_how_to_install_it() -> None:
    program = """
import asyncio, sys
sys.modules["obstore"] = sys.modules["obstore.store"] = None
from schemas.source import parse_source
from worker.sources import Unsupported, Want, find_source
from worker.sources.secrets import NodeSecrets
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
ref = parse_source("s3://bkt/k")
try:
    asyncio.run(find_source("s3").resolve(ref, want=Want(ref), secrets=NodeSecrets(Path("/none"), environ={})))
except Unsupported as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=Path.cwd())
    assert "pip install 'puna[s3]'" in done.stdout


def test_it_is_found_by_its_schemes() -> None:
    assert isinstance(find_source("s3"), ObjectStore)
    assert isinstance(find_source("oci"), ObjectStore)


class Metadata(BaseHTTPRequestHandler):
    """What a cloud tells its machines."""

    asked: ClassVar[list[str]] = []

    def do_PUT(self) -> None:
        self._tell(b"session")

    def do_GET(self) -> None:
        keys = {"AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "Token": "t", "Expiration": "2099-01-01T00:00:00Z"}
        self._tell(b"role" if self.path.endswith("/") else json.dumps({"Code": "Success", **keys}).encode())

    def _tell(self, body: bytes) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


async def test_a_machine_of_a_cloud_gets_its_keys_from_there_once(
    store: Any, secrets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        asking = Asking(store().url, secrets)
        for _ in range(3):
            text = "s3://bkt/models/m-Q4_K_M.gguf"
            assert await asking.fetch(text, token_ref=None, parameters={"auth": "instance"}) == Q4
        assert len(Metadata.asked) == 3
    finally:
        server.shutdown()
