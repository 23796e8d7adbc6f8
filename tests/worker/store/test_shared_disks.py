"""Disks that several workers share, that go away and come back, and that get full: nothing is lost or made up."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from schemas.model import Profile
from schemas.node import Device
from worker.copymetrics import CopiesNow, CopyMetrics
from worker.fitting import why_never
from worker.metrics import Metrics
from worker.settings import WorkerSettings
from worker.shelving import Shelving
from worker.sources import NoSpace
from worker.store import staging
from worker.store.errors import BadModelFile, NeverFits, NotHere, RootGone
from worker.store.settings import SharedRoot, StoreSettings

ONE, TWO = "hf://o/a@one", "hf://o/a@two"


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").iterdir()}


# -- a folder that goes away -------------------------------------------------------------------------------------------
async def test_a_folder_that_vanished_is_told_and_not_taken_for_an_empty_one(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    root, away = tmp_path / "store", tmp_path / "away"
    root.rename(away)
    for there in (None, root):
        if there:
            there.mkdir()  # as an unmounted folder is
        with pytest.raises(RootGone, match="not there any more"):
            await house.copies.tidy()
        assert "not there any more" in house.store.trouble
        assert set(house.store.copies()) == {"a"}
        assert house.copies.states()["a"].state == "Ready"
        with pytest.raises(RootGone):
            await house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
        with pytest.raises(RootGone):
            await house.copies.remove("a")
        with pytest.raises(RootGone):
            await house.store.probe()
        assert not (root / "blobs").exists()
    root.rmdir()
    away.rename(root)
    await house.copies.tidy()
    assert house.store.trouble is None
    assert storehouse.content(house) == {"a": "one"}
    await house.store.probe()
    assert house.copies.states()["a"].state == "Ready"


async def test_a_copy_that_a_person_deleted_is_told_and_comes_again(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    shutil.rmtree(copy.folder.parent)
    await house.copies.tidy()
    assert "a" not in house.copies.states()
    assert house.published[-1] == ("a", None)
    assert house.served == []
    await house.copies.ensure(storehouse.want("a", ONE))
    assert storehouse.content(house) == {"a": "one"}


async def test_a_file_that_a_person_deleted_is_told_and_mended(new_house, storehouse) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    (copy.folder.parents[2] / "blobs" / f"sha256-{copy.manifest.files[0].sha256}").unlink()
    await house.copies.tidy()
    assert house.copies.states()["a"].state == "Failed"
    assert house.served == []
    await house.copies.ensure(storehouse.want("a", ONE))
    assert storehouse.content(house) == {"a": "one"}
    assert [copy.model for copy in house.served] == ["a"]


async def test_a_model_that_is_deleted_while_it_is_verified_is_no_riddle(new_house, storehouse, monkeypatch) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    verify = house.store.verify

    async def beside(model: str, on_bytes: Any) -> Any:
        shutil.rmtree(copy.folder.parent)
        await house.store.refresh()
        monkeypatch.setattr(house.store, "verify", verify)
        return ()

    monkeypatch.setattr(house.store, "verify", beside)
    with pytest.raises(NotHere):
        await house.copies.verify("a")
    assert "a" not in house.copies.states()


async def test_a_root_that_is_a_link_is_a_root(new_house, storehouse, tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    house = await new_house(root=tmp_path / "linked")
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    house.engine_paths.append(copy.main)
    await house.copies.ensure(storehouse.want("a", TWO))
    assert copy.main.read_bytes() == storehouse.A1
    assert storehouse.content(house) == {"a": "two"}


# -- several workers ---------------------------------------------------------------------------------------------------
async def test_what_another_worker_installed_or_deleted_is_seen(new_house, storehouse) -> None:
    one, two = await new_house(), await new_house()
    await one.copies.ensure(storehouse.want("a", ONE))
    await two.copies.tidy()
    assert two.copies.states()["a"].state == "Ready"
    assert [copy.model for copy in two.served] == ["a"]
    await one.copies.ensure(storehouse.want("a", TWO))
    await two.copies.tidy()
    assert two.copies.states()["a"].revision == "two"
    await one.copies.remove("a")
    await two.copies.tidy()
    assert two.published[-1] == ("a", None)


async def test_two_workers_that_fetch_one_file_into_one_folder_send_it_once(new_house, storehouse, monkeypatch) -> None:
    monkeypatch.setattr(staging, "ELSEWHERE_S", 0.1)
    one, two = await new_house(), await new_house()
    want = storehouse.want("b", "hf://o/b@one")
    await asyncio.gather(one.copies.ensure(want), two.copies.ensure(want))
    assert one.carrier.sent + two.carrier.sent == len(storehouse.SHARED)
    for house in (one, two):
        await house.copies.tidy()
        assert storehouse.content(house) == {"b": "one"}


async def test_another_workers_engine_keeps_its_files_through_an_update_and_a_delete(new_house, storehouse) -> None:
    server, other = await new_house(), await new_house()
    copy = await server.copies.ensure(storehouse.want("a", ONE))
    server.engine_paths.append(copy.main)
    await server.store.hold_open()
    await other.copies.tidy()
    await other.copies.ensure(storehouse.want("a", TWO))
    assert copy.main.read_bytes() == storehouse.A1
    server.engine_paths.clear()
    await server.store.hold_open()
    assert not copy.folder.exists(), "nobody uses it any more"
    assert storehouse.content(other) == {"a": "two"}


async def test_another_profile_of_what_may_not_be_written_holds_while_the_worker_lives(
    new_house, storehouse, tmp_path
) -> None:
    first = await new_house()
    await first.copies.ensure(storehouse.want("a", ONE))
    before = sorted((str(path), path.lstat().st_mtime_ns) for path in (tmp_path / "store").rglob("*"))
    reader = await new_house(StoreSettings(models_root_mode="ro", reserved_disk_bytes=0))
    copy = await reader.copies.ensure(storehouse.want("a", ONE, profile=Profile(pinned=True, slots=2)))
    assert copy.manifest.profile.slots == 2
    assert reader.copies.states()["a"].state == "Ready"
    await reader.copies.tidy()
    assert reader.store.copies()["a"].manifest.profile.slots == 2
    assert sorted((str(path), path.lstat().st_mtime_ns) for path in (tmp_path / "store").rglob("*")) == before


async def test_a_shared_root_that_cannot_be_reached_takes_nothing_away(new_house, storehouse, tmp_path) -> None:
    other = await new_house(root=tmp_path / "shared")
    await other.copies.ensure(storehouse.want("a", ONE))
    shared = StoreSettings(reserved_disk_bytes=0, shared_roots=(SharedRoot(path=tmp_path / "shared"),))
    house = await new_house(shared)
    (tmp_path / "shared").rename(tmp_path / "away")
    with pytest.raises(RootGone):
        await house.copies.tidy()
    assert set(house.store.copies()) == {"a"}
    await house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    await house.copies.remove("b")
    assert set(house.store.copies()) == {"a"}


# -- room --------------------------------------------------------------------------------------------------------------
async def test_a_download_makes_room_by_letting_the_oldest_go_and_it_is_told(new_house, storehouse, shelf) -> None:
    size = len(storehouse.model_bytes("m0"))
    for n in range(4):
        shelf.publish(f"hf://o/m{n}", "one", {"m.gguf": storehouse.model_bytes(f"m{n}")})
    settings = StoreSettings(
        reserved_disk_bytes=0, budget_bytes=size * 3, high_water_percent=100, low_water_percent=100
    )
    house = await new_house(settings)
    for n in range(3):
        await house.copies.ensure(storehouse.want(f"m{n}", f"hf://o/m{n}"))
    house.protected = {"m0"}
    await house.copies.ensure(storehouse.want("m3", "hf://o/m3"))
    assert set(house.copies.states()) == {"m0", "m2", "m3"}
    assert ("m1", None) in house.published
    assert {copy.model for copy in house.served} == {"m0", "m2", "m3"}


async def test_models_of_another_root_do_not_go_for_room_in_this_one(new_house, storehouse, tmp_path) -> None:
    other = await new_house(root=tmp_path / "shared")
    await other.copies.ensure(storehouse.want("a", ONE))
    shared = (SharedRoot(path=tmp_path / "shared", mode="rw-delete"),)
    marks = {"budget_bytes": 1 << 20, "high_water_percent": 1, "low_water_percent": 0}
    house = await new_house(StoreSettings(reserved_disk_bytes=0, shared_roots=shared, **marks))
    await house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    assert await house.copies.collect() == ["b"]
    assert storehouse.content(other) == {"a": "one"}


async def test_nothing_goes_for_a_download_that_would_not_fit_all_the_same(new_house, storehouse, shelf) -> None:
    size = len(storehouse.model_bytes("m0"))
    shelf.publish("hf://o/m", "one", {"m.gguf": storehouse.model_bytes("m0")})
    shelf.publish("hf://o/large", "one", {"m.gguf": storehouse.model_bytes("large", 60_000)})
    settings = StoreSettings(reserved_disk_bytes=0, budget_bytes=size * 2, high_water_percent=90, low_water_percent=50)
    house = await new_house(settings)
    await house.copies.ensure(storehouse.want("m", "hf://o/m"))
    with pytest.raises(NoSpace, match="budget_bytes"):
        await house.copies.ensure(storehouse.want("large", "hf://o/large"))
    assert storehouse.content(house) == {"m": "one"}


async def test_use_is_noted_once_a_minute_and_is_there_after_a_restart(new_house, storehouse) -> None:
    now = [5_000.0]
    house = await new_house(clock=lambda: now[0])
    house.store._clock = lambda: now[0]
    await house.copies.ensure(storehouse.want("a", ONE))
    for _ in range(1000):
        house.copies.used("a")
        house.copies.used("nobody")
    assert len(house.copies._touching) == 1
    await asyncio.wait(house.copies._touching)
    assert house.store.copies()["a"].used_at == 5_000.0
    now[0] += 59
    house.copies.used("a")
    assert not house.copies._touching
    now[0] += 1
    house.copies.used("a")
    await asyncio.wait(house.copies._touching)
    later = await new_house()
    assert later.store.copies()["a"].used_at == 5_060.0


# -- what a file is ----------------------------------------------------------------------------------------------------
async def test_the_description_is_left_out_and_comes_back_as_it_is_asked_for(new_house, storehouse) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE, skip_parsing=True))
    assert house.copies.states()["a"].config == {}
    await house.copies.ensure(storehouse.want("a", ONE))
    config = house.copies.states()["a"].config
    assert (config["format"], config["architecture"], config["parameters"]) == ("gguf", "llama", 192)
    assert config["api_capabilities"][0] == "OPENAI_V1_CHAT_COMPLETIONS"
    assert config["cache_bytes_per_token"] == 256
    assert config["memory_context_tokens"] == 4096
    assert config["memory_bytes"] == 2 * 768 + 4096 * 256 + config["compute_bytes"]
    await house.copies.ensure(storehouse.want("a", ONE, skip_parsing=True))
    assert house.copies.states()["a"].config == {}


async def test_a_split_model_that_lacks_a_part_is_refused(new_house, storehouse, shelf) -> None:
    shelf.publish("hf://o/s", "one", {"m-00001-of-00002.gguf": storehouse.A1})
    house = await new_house()
    with pytest.raises(BadModelFile, match="missing"):
        await house.copies.ensure(storehouse.want("s", "hf://o/s"))
    assert not house.store.copies()


# -- counting ----------------------------------------------------------------------------------------------------------
class Queue:
    waiting = 2


def text_of(metrics: Metrics) -> str:
    metrics._made_at = float("-inf")
    return metrics.text().decode()


async def test_every_end_of_a_download_is_counted_once_under_both_names(new_house, storehouse, shelf) -> None:
    metrics = Metrics()
    watch = CopyMetrics(metrics.registry, "puna", metrics.model)
    house = await new_house(watch=watch)
    shelving = Shelving(
        house.store, house.copies, opened=lambda: True, unusable=lambda: None, tasks_waiting=lambda: Queue.waiting
    )
    metrics.add(CopiesNow(shelving))
    await shelving.look()
    await house.copies.ensure(storehouse.want("a", ONE))
    await house.copies.ensure(storehouse.want("a", ONE))
    with pytest.raises(Exception, match="not on the shelf"):
        await house.copies.ensure(storehouse.want("b", "hf://o/nobody"))
    await house.copies.verify("a")
    watch.throttled("https://h", 7.0)
    watch.asked("put", "success", 0.001)
    watch.asked("list", "bus_unavailable", 0.001)
    watch.checked(good=False, algorithm="md5")
    found = text_of(metrics)
    of = 'model_type="ClusterBaseModel",name="{}",namespace="puna"'
    size = float(len(storehouse.A1) + len(storehouse.SHARED))
    for line in (
        f"model_agent_downloads_success_total{{{of.format('a')}}} 1.0",
        f"model_agent_downloads_failed_total{{{of.format('b')}}} 1.0",
        f"model_agent_download_bytes_total{{{of.format('a')}}} {size}",
        f"model_agent_download_duration_seconds_count{{{of.format('a')}}} 1.0",
        'model_agent_verifications_total{result="success"} 3.0',
        'model_agent_verifications_total{result="failure"} 1.0',
        "model_agent_verification_duration_seconds_count 1.0",
        "model_agent_md5_checksum_failed_total 1.0",
        "model_agent_rate_limit_total 1.0",
        "model_agent_rate_limit_wait_seconds_sum 7.0",
        "model_agent_active_workers 0.0",
        "model_agent_task_queue_depth 2.0",
        'model_agent_configmap_operations_total{operation="update",result="success"} 1.0',
        'model_agent_configmap_operations_total{operation="list",result="failure"} 1.0',
        'puna_worker_downloads_total{model="a",outcome="ok"} 1.0',
        'puna_worker_downloads_total{model="b",outcome="source_not_found"} 1.0',
        f"puna_worker_download_bytes_total {size}",
        'puna_worker_copies{state="Ready"} 1.0',
        'puna_worker_copies{state="Failed"} 1.0',
        'puna_worker_kv_operations_total{operation="list",result="bus_unavailable"} 1.0',
        "python_asyncio_tasks_current ",
        "process_resident_memory_bytes ",
    ):
        assert line in found, line


def gpu(number: int, gib: int) -> Device:
    whole = gib << 30
    return Device(device=f"cuda:{number}", backend="cuda", name="G", memory_total_bytes=whole, memory_free_bytes=whole)


async def test_a_model_that_no_gpu_could_hold_is_not_fetched_and_counted(new_house, storehouse, shelf) -> None:
    metrics = Metrics()
    house = await new_house(watch=CopyMetrics(metrics.registry, "puna", metrics.model))

    def never(want: Any, listing: Any) -> None:
        raise NeverFits("it is too large")

    house.copies._parts = type(house.copies._parts)(house.carrier, None, never)
    with pytest.raises(NeverFits):
        await house.copies.ensure(storehouse.want("a", ONE))
    record = house.copies.states()["a"]
    assert (record.state, record.error, record.next_retry_at) == ("Failed", "vram_insufficient", None)
    assert house.carrier.sent == 0
    found = text_of(metrics)
    assert 'model_agent_downloads_skipped_total{reason="vram_insufficient"} 1.0' in found
    assert "model_agent_downloads_failed_total{" not in found


@pytest.mark.parametrize(
    ("gpus", "profile", "settings", "refused"),
    [
        ([], {}, {}, False),
        ([gpu(0, 24)], {}, {}, True),
        ([gpu(0, 24), gpu(1, 24)], {}, {}, False),
        ([gpu(0, 24), gpu(1, 24)], {"devices_per_engine": 1}, {}, True),
        ([gpu(0, 24)], {"cpu_fallback": True}, {}, False),
        ([gpu(0, 24)], {"flags": {"--n-gpu-layers": "10"}}, {}, False),
        ([gpu(0, 24)], {"flags": {"rpc": "h:1"}}, {}, False),
        ([gpu(0, 24)], {}, {"store": {"fit_check": False}}, False),
        ([gpu(0, 24)], {}, {"memory_check": "warn"}, False),
        ([gpu(0, 80)], {}, {}, False),
        ([gpu(0, 80)], {}, {"memory_limit_bytes": 8 << 30}, True),
    ],
)
async def test_only_what_could_never_fit_is_refused(shelf, storehouse, gpus, profile, settings, refused) -> None:
    want = storehouse.want("a", ONE, profile=Profile.model_validate(profile))
    listing = await shelf.resolve(_ref(ONE), want=None, secrets=None)
    large = type(listing)(listing.ref, "one", tuple(_sized(each, 20 << 30) for each in listing.files), listing.main)
    reason = why_never(want, large, gpus, WorkerSettings.model_validate(settings))
    assert (reason is not None) == refused
    if reason:
        assert "40.00 GiB" in reason
    unknown = type(listing)(listing.ref, "one", tuple(_sized(each, None) for each in listing.files), listing.main)
    assert why_never(want, unknown, gpus, WorkerSettings.model_validate(settings)) is None


def _ref(text: str) -> Any:
    from schemas.source import parse_source

    return parse_source(text)


def _sized(file: Any, size: int | None) -> Any:
    from dataclasses import replace

    return replace(file, size_bytes=size)
