"""The store: what comes is whole, what goes leaves nothing, and nobody leads it out of its folder."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest

from schemas.model import Profile
from schemas.source import parse_source
from worker.sources import BadListing, Corrupt, DiskFailed, NoSpace, RemoteFile
from worker.store import layout
from worker.store.errors import BadModelFile, NotHere, ReadOnlyRoot
from worker.store.settings import SharedRoot, StoreSettings

ONE = "hf://o/a@one"


def hexed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").iterdir()}


async def test_a_copy_is_a_folder_of_links_to_blobs_with_its_description(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    assert copy.main.read_bytes() == storehouse.A1
    assert copy.main.samefile(tmp_path / "store" / "blobs" / f"sha256-{hexed(storehouse.A1)}")
    assert copy.role("projector").read_bytes() == storehouse.SHARED
    assert copy.manifest.config["architecture"] == "llama"
    assert copy.manifest.config["context_tokens"] == 4096
    assert copy.main.stat().st_mode & 0o222 == 0


async def test_where_there_are_no_hard_links_views_are_made_of_relative_symbolic_ones(new_house, storehouse) -> None:
    def no_links(name: str) -> None:
        if name.startswith("before link"):
            raise OSError(errno.EPERM, "no links here")

    house = await new_house(step=no_links)
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    assert copy.main.is_symlink()
    assert not os.readlink(copy.main).startswith("/")
    assert copy.role("projector").read_bytes() == storehouse.SHARED
    again = await new_house()
    assert storehouse.content(again) == {"a": "one"}
    await again.copies.remove("a")
    assert not again.store.copies()


async def test_two_models_share_a_blob_and_the_second_keeps_it(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    sent = house.carrier.sent
    await house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    assert house.carrier.sent == sent
    await house.copies.remove("a")
    assert blobs(tmp_path / "store") == {f"sha256-{hexed(storehouse.SHARED)}"}
    assert storehouse.content(house) == {"b": "one"}


async def test_an_update_leaves_the_old_files_to_whoever_uses_them(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    old = await house.copies.ensure(storehouse.want("a", ONE))
    use = await house.store.use("a")
    new = await house.copies.ensure(storehouse.want("a", "hf://o/a@two"))
    assert old.main.read_bytes() == storehouse.A1
    assert new.main.read_bytes() == storehouse.A2
    assert await house.store.tidy() == 0
    use.release()
    assert await house.store.tidy() == 1
    assert not old.main.exists()
    assert f"sha256-{hexed(storehouse.A1)}" not in blobs(tmp_path / "store")


async def test_files_that_engines_were_given_stay_through_an_update(new_house, storehouse) -> None:
    house = await new_house()
    old = await house.copies.ensure(storehouse.want("a", ONE))
    house.engine_paths.append(old.main)
    await house.copies.ensure(storehouse.want("a", "hf://o/a@two"))
    assert old.main.exists()
    house.engine_paths.clear()
    assert await house.store.tidy() == 1


async def test_an_old_revision_is_kept_while_another_worker_of_the_same_root_uses_it(new_house, storehouse) -> None:
    first = await new_house()
    old = await first.copies.ensure(storehouse.want("a", ONE))
    second = await new_house()
    use = await second.store.use("a")
    await first.copies.ensure(storehouse.want("a", "hf://o/a@two"))
    assert await first.store.tidy() == 0
    assert old.main.exists()
    use.release()
    assert await first.store.tidy() == 1


async def test_a_model_that_another_worker_uses_is_only_not_served_any_more(new_house, storehouse) -> None:
    first = await new_house()
    await first.copies.ensure(storehouse.want("a", ONE))
    second = await new_house()
    use = await second.store.use("a")
    await first.copies.remove("a")
    assert not first.store.copies()
    assert storehouse.content(second) == {"a": "one"}
    use.release()


async def test_the_same_content_again_from_elsewhere_leaves_those_that_have_it_as_they_are(
    new_house, storehouse, shelf, tmp_path
) -> None:
    house = await new_house()
    shelf.told_digest = lambda _: None
    sources = [f"https://{host}/m.gguf" for host in ("one", "two", "three")]
    for source in sources:
        shelf.publish(source, "r", {"m.gguf": storehouse.A1})
    copies = [
        await house.copies.ensure(storehouse.want(*each)) for each in zip(("small", "typo"), sources, strict=False)
    ]
    before = copies[0].main.stat().st_ino
    await house.copies.ensure(storehouse.want("wanted", sources[2]))
    await house.copies.remove("wanted")
    await house.copies.tidy()
    assert {model: record.state for model, record in house.copies.states().items()} == {
        "small": "Ready",
        "typo": "Ready",
    }
    assert {copy.model for copy in house.served} == {"small", "typo"}
    assert {copy.main.stat().st_ino for copy in copies} == {before}
    assert blobs(tmp_path / "store") == {f"sha256-{hexed(storehouse.A1)}"}


async def test_retained_files_stay_after_a_delete_and_need_not_come_again(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    await house.copies.remove("a", retain=True)
    later = await new_house()
    assert not later.store.copies()
    assert len(blobs(tmp_path / "store")) == 2
    await later.copies.ensure(storehouse.want("a", ONE))
    assert later.carrier.sent == 0
    await later.copies.remove("a")
    assert not blobs(tmp_path / "store")


async def test_a_retained_model_is_gone_with_a_second_delete(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    await house.copies.remove("a", retain=True)
    await house.copies.remove("a")
    assert not blobs(tmp_path / "store")


async def test_a_manifest_that_cannot_be_read_keeps_all_blobs(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    await house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    (copy.folder / "manifest.json").write_text('{"format": 99}')
    later = await new_house()
    await later.copies.remove("b")
    assert len(blobs(tmp_path / "store")) == 2
    assert copy.main.exists()


# -- what must not be let in -----------------------------------------------------------------------
@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "a//b",
        "nul\0",
        "a\\b",
        "x" * 10_000,
        "manifest.json",
        "manifest.json/x",
        ".new-link",
    ],
)
async def test_a_hostile_file_name_is_refused_and_nothing_is_written(
    new_house, storehouse, shelf, path, tmp_path
) -> None:
    house = await new_house()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(BadListing):
        shelf.publish("hf://o/e", "one", {path: storehouse.A1})
        await house.copies.ensure(storehouse.want("evil", "hf://o/e"))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert house.copies.states()["evil"].state == "Failed"


async def test_a_file_that_is_also_a_folder_is_refused(new_house, storehouse, shelf) -> None:
    house = await new_house()
    shelf.publish("hf://o/e", "one", {"a": storehouse.A1, "a/b": storehouse.A2})
    with pytest.raises(BadListing, match="file and as a folder"):
        await house.copies.ensure(storehouse.want("evil", "hf://o/e"))


@pytest.mark.parametrize("model", ["a/../../b", "..", "current", "a b", "x" * 190, "Ü/ö:Q4", "=2E=2E", ".hidden"])
async def test_any_model_name_stays_inside(new_house, storehouse, model, tmp_path) -> None:
    house = await new_house()
    try:
        wanted = storehouse.want(model, ONE)
    except ValueError:
        return
    copy = await house.copies.ensure(wanted)
    assert copy.main.resolve().is_relative_to((tmp_path / "store").resolve())
    await house.copies.remove(model)
    assert not list((tmp_path / "store" / "models").iterdir())


@pytest.mark.parametrize("planted", ["models", "blobs", "partial", "trash", "retained"])
async def test_a_planted_link_in_place_of_a_folder_is_not_followed(new_house, storehouse, planted, tmp_path) -> None:
    house = await new_house()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (tmp_path / "store" / planted).rmdir()
    (tmp_path / "store" / planted).symlink_to(outside)
    try:
        await house.copies.ensure(storehouse.want("a", ONE))
        await house.copies.remove("a")
    except DiskFailed:
        pass
    assert [path.name for path in outside.iterdir()] == ["precious"]


async def test_a_planted_link_in_place_of_a_part_is_not_written_through(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "store" / "partial" / f"sha256-{hexed(storehouse.A1)}"
    folder.mkdir()
    (folder / "data").symlink_to(victim)
    (folder / "journal").symlink_to(victim)
    await house.copies.ensure(storehouse.want("a", ONE))
    assert victim.read_text() == "mine"


async def test_a_link_in_a_deleted_view_is_taken_away_and_not_followed(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    (copy.folder / "link").symlink_to(outside)
    await house.copies.remove("a")
    assert (outside / "precious").read_text() == "mine"


async def test_a_folder_of_another_program_is_refused_and_left_as_it_is(new_house, tmp_path) -> None:
    root = tmp_path / "ollama"
    blob = root / "blobs" / f"sha256-{'0' * 64}"
    blob.parent.mkdir(parents=True)
    blob.write_text("theirs")
    with pytest.raises(ReadOnlyRoot, match="not Puna's"):
        await new_house(root=root)
    assert blob.read_text() == "theirs"


async def test_a_store_of_a_newer_format_is_refused(new_house, tmp_path) -> None:
    await new_house()
    (tmp_path / "store" / "store.json").write_text('{"format": 2}')
    with pytest.raises(ReadOnlyRoot, match="format 2"):
        await new_house()


async def test_a_file_that_is_no_model_is_refused_and_leaves_nothing(new_house, storehouse, shelf, tmp_path) -> None:
    house = await new_house()
    shelf.publish("hf://o/e", "one", {"e.gguf": b"not a model" * 1000})
    with pytest.raises(BadModelFile, match=r"e\.gguf cannot be loaded"):
        await house.copies.ensure(storehouse.want("evil", "hf://o/e"))
    assert not blobs(tmp_path / "store")
    assert not list((tmp_path / "store" / "models").iterdir())
    copy = await house.copies.ensure(storehouse.want("evil", "hf://o/e", skip_parsing=True))
    assert copy.manifest.config == {}


async def test_what_came_with_another_digest_is_refused_and_leaves_nothing(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    house.carrier.spoil = True
    with pytest.raises(Corrupt):
        await house.copies.ensure(storehouse.want("a", ONE))
    assert not blobs(tmp_path / "store")
    assert not list((tmp_path / "store" / "partial").iterdir())
    house.carrier.spoil = False
    await house.copies.ensure(storehouse.want("a", ONE))


async def test_a_checksum_that_the_caller_gave_is_held_against_what_came(new_house, storehouse, shelf) -> None:
    house = await new_house()
    shelf.told_digest = lambda _: None
    with pytest.raises(Corrupt):
        await house.copies.ensure(storehouse.want("b", "hf://o/b@one", checksums={"*": f"md5:{'0' * 32}"}))
    right = f"md5:{hashlib.md5(storehouse.SHARED).hexdigest()}"
    await house.copies.ensure(storehouse.want("b", "hf://o/b@one", checksums={"*": right}))


# -- the disk refuses ------------------------------------------------------------------------------
async def test_a_disk_that_is_full_at_any_step_leaves_what_was_there(memory_path, storehouse, new_house) -> None:
    """For each step of an update: it is refused, the old copy is served, and the same again succeeds."""
    steps = 0
    while True:
        full = iter(range(10_000))

        def step(name: str, full: Any = full, steps: int = steps) -> None:
            if name.startswith("before") and "chunk" not in name and next(full) == steps:
                raise OSError(errno.ENOSPC, "No space left on device")

        root = memory_path / f"store-{steps}"
        first = await new_house(root=root)
        await first.copies.ensure(storehouse.want("a", ONE))
        try:
            house = await new_house(root=root, step=step)
        except NoSpace:
            house = await new_house(root=root)
            assert storehouse.content(house) == {"a": "one"}
            steps += 1
            continue
        try:
            async with asyncio.timeout(20):
                await house.copies.ensure(storehouse.want("a", "hf://o/a@two"))
        except NoSpace:
            pass
        later = await new_house(root=root)
        assert storehouse.content(later) in ({"a": "one"}, {"a": "two"})
        await later.copies.ensure(storehouse.want("a", "hf://o/a@two"))
        assert storehouse.content(later) == {"a": "two"}
        assert not storehouse.litter(root, later)
        if next(full) < steps:
            break
        steps += 1
    assert steps > 15


async def test_room_is_checked_before_and_promised_during_a_download(new_house, storehouse) -> None:
    house = await new_house(StoreSettings(reserved_disk_bytes=1 << 60))
    with pytest.raises(NoSpace, match="reserved_disk_bytes"):
        await house.copies.ensure(storehouse.want("a", ONE))
    assert house.carrier.sent == 0
    roomy = await new_house()
    room = await roomy.store.room()
    promised = await roomy.store.reserve(room.free_bytes * 3 // 4)
    with pytest.raises(NoSpace):
        await roomy.store.reserve(room.free_bytes // 2)
    promised.release()
    promised.release()
    (await roomy.store.reserve(room.free_bytes // 2)).release()


# -- clearing --------------------------------------------------------------------------------------
async def test_above_the_high_mark_the_least_recently_used_go_until_the_low_one(new_house, storehouse, shelf) -> None:
    size = len(storehouse.model_bytes("m0"))
    for n in range(5):
        shelf.publish(f"hf://o/m{n}", "one", {"m.gguf": storehouse.model_bytes(f"m{n}")})
    settings = StoreSettings(reserved_disk_bytes=0, budget_bytes=size * 5, high_water_percent=90, low_water_percent=50)
    now = [1000.0]
    house = await new_house(settings)
    house.store._clock = lambda: now[0]
    for n in range(5):
        profile = Profile(pinned=n == 0)
        await house.copies.ensure(storehouse.want(f"m{n}", f"hf://o/m{n}", profile=profile))
        now[0] += 10
        await house.store.used(f"m{n}")
    house.protected = {"m1"}
    use = await house.store.use("m2")
    now[0] += 10
    await house.store.used("m3")
    assert await house.copies.collect() == ["m4", "m3"]
    use.release()
    assert set(house.store.copies()) == {"m0", "m1", "m2"}
    assert "m4" not in house.copies.states()
    assert await house.copies.collect() == []


async def test_nothing_goes_by_itself_unless_a_mark_is_set(new_house, storehouse) -> None:
    first = await new_house()
    await first.copies.ensure(storehouse.want("a", ONE))
    house = await new_house(StoreSettings(reserved_disk_bytes=0, budget_bytes=1))
    assert await house.copies.collect() == []
    assert storehouse.content(house) == {"a": "one"}
    with pytest.raises(NoSpace, match="budget_bytes"):
        await house.copies.ensure(storehouse.want("a", "hf://o/a@two"))
    assert storehouse.content(house) == {"a": "one"}


# -- verifying -------------------------------------------------------------------------------------
async def test_a_flipped_bit_is_found_and_the_next_ensure_fetches_that_file_alone(
    new_house, storehouse, tmp_path
) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    other = await house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    path = tmp_path / "store" / "blobs" / f"sha256-{hexed(storehouse.A1)}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=r"a\.gguf"):
        await house.copies.verify("a")
    assert house.copies.states()["a"].state == "Failed"
    assert [copy.model for copy in house.served] == ["b"]
    later = await new_house()
    assert later.copies.states()["a"].state == "Failed"
    copy = await later.copies.ensure(storehouse.want("a", ONE))
    assert later.carrier.sent == len(storehouse.A1)
    assert copy.main.read_bytes() == storehouse.A1
    assert (await later.copies.verify("a")).main == copy.main
    assert later.copies.states()["a"].state == "Ready"
    assert other.main.read_bytes() == storehouse.SHARED


async def test_a_model_that_is_not_here_cannot_be_verified_or_used(new_house) -> None:
    house = await new_house()
    with pytest.raises(NotHere):
        await house.copies.verify("a")
    with pytest.raises(NotHere):
        await house.store.use("a")
    assert not house.copies.states()


# -- other places ----------------------------------------------------------------------------------
async def test_a_read_only_root_serves_and_is_never_written_to(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    (copy.folder / ".new-left").write_text("left")
    (tmp_path / "store" / "trash" / "old").write_text("left")

    def state() -> list[Any]:
        return sorted((str(p), p.lstat().st_mtime_ns, p.lstat().st_ino) for p in (tmp_path / "store").rglob("*"))

    before = state()
    settings = StoreSettings(models_root_mode="ro", reserved_disk_bytes=0)
    reader = await new_house(settings)
    assert storehouse.content(reader) == {"a": "one"}
    use = await reader.store.use("a")
    await reader.copies.verify("a")
    with pytest.raises(ReadOnlyRoot):
        await reader.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    await reader.copies.remove("a")
    assert not reader.store.copies()
    await reader.store.tidy()
    use.release()
    assert state() == before


async def test_a_root_without_deletion_only_grows(new_house, storehouse, tmp_path) -> None:
    house = await new_house(StoreSettings(models_root_mode="rw", reserved_disk_bytes=0))
    await house.copies.ensure(storehouse.want("a", ONE))
    await house.copies.ensure(storehouse.want("a", "hf://o/a@two"))
    await house.copies.remove("a")
    assert not house.store.copies()
    assert len(blobs(tmp_path / "store")) == 3


async def test_models_of_a_shared_root_are_served_and_its_blobs_are_used(new_house, storehouse, tmp_path) -> None:
    other = await new_house(root=tmp_path / "shared")
    await other.copies.ensure(storehouse.want("a", ONE))
    shared = StoreSettings(reserved_disk_bytes=0, shared_roots=(SharedRoot(path=tmp_path / "shared"),))
    house = await new_house(shared)
    assert storehouse.content(house) == {"a": "one"}
    await house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    assert house.carrier.sent == 0
    await house.copies.remove("a")
    assert set(house.store.copies()) == {"b"}
    assert storehouse.content(other) == {"a": "one"}


def cache_of(root: Path, files: dict[str, bytes]) -> dict[str, str]:
    for name, data in files.items():
        path = root / "hub" / "models--o--a" / "blobs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {"HF_HOME": str(root)}


async def test_a_hugging_face_cache_is_used_after_its_content_was_compared(new_house, storehouse, tmp_path) -> None:
    right, wrong = hexed(storehouse.A1), hexed(storehouse.SHARED)
    environ = cache_of(tmp_path / "hf", {right: storehouse.A1, wrong: b"\0" * len(storehouse.SHARED)})
    house = await new_house(environ=environ)
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    assert house.carrier.sent == len(storehouse.SHARED)
    assert storehouse.content(house) == {"a": "one"}
    await house.copies.remove("a")
    kept = tmp_path / "hf" / "hub" / "models--o--a" / "blobs"
    assert (kept / right).read_bytes() == storehouse.A1
    assert (kept / right).stat().st_mode & 0o200
    assert copy.model == "a"


async def test_a_link_in_a_hugging_face_cache_is_not_followed(new_house, storehouse, tmp_path) -> None:
    environ = cache_of(tmp_path / "hf", {})
    blob = tmp_path / "hf" / "hub" / "models--o--a" / "blobs" / hexed(storehouse.A1)
    blob.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_bytes(storehouse.A1)
    blob.symlink_to(tmp_path / "elsewhere")
    house = await new_house(environ=environ)
    await house.copies.ensure(storehouse.want("a", ONE))
    assert house.carrier.sent == len(storehouse.A1) + len(storehouse.SHARED)


def test_a_part_without_a_known_content_is_named_after_where_it_comes_from(shelf: Any, storehouse: ModuleType) -> None:
    listing = asyncio.run(shelf.resolve(parse_source(ONE), want=None, secrets=None))
    plain = RemoteFile("a.gguf", "https://h/a.gguf", 10, None, '"e"')
    assert layout.partial_key(listing, listing.files[0]).startswith("sha256-")
    other = RemoteFile("a.gguf", "https://h/a.gguf", 10, None, '"f"')
    assert layout.partial_key(listing, plain) != layout.partial_key(listing, other)
    assert orjson.dumps(layout.partial_key(listing, plain))
