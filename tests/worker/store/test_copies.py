"""The owner of the copies: one piece of work a model, joined by all who ask, ended at once, told at each step."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from schemas.model import COPY_MOVES, CopyProgress, ModelRecord, Profile
from worker.copies import Copies
from worker.copying import Parts
from worker.settings import ModelSettings
from worker.sources import Corrupt, NotThere, RemoteFile, Throttled, Unreachable
from worker.store.catalogue import entry_of, merged
from worker.store.errors import Removed, Superseded, TooLate
from worker.store.progress import Meter
from worker.store.records import IllegalMove, Records
from worker.store.settings import StoreSettings
from worker.store.store import Store
from worker.transfer.fetcher import Fetcher
from worker.transfer.settings import DownloadSettings

ONE, TWO = "hf://o/a@one", "hf://o/a@two"


def states_of(house: Any, model: str) -> list[str]:
    told = [record.state if record else "gone" for name, record in house.published if name == model]
    return [state for n, state in enumerate(told) if n == 0 or told[n - 1] != state]


async def held(house: Any) -> None:
    """Its transfer has brought something, and waits."""
    house.carrier.gate = asyncio.Event()
    house.carrier.moving.clear()


async def test_a_copy_goes_through_its_states_and_is_served(new_house, storehouse) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    assert states_of(house, "a") == ["Pending", "Downloading", "Verifying", "Ready"]
    assert [copy.model for copy in house.served] == ["a"]
    record = house.copies.states()["a"]
    assert (record.revision, record.size_bytes) == ("one", len(storehouse.A1) + len(storehouse.SHARED))
    assert record.config["architecture"] == "llama"
    await house.copies.ensure(storehouse.want("a", TWO))
    assert states_of(house, "a")[4:] == ["Updating", "Ready"]
    await house.copies.remove("a")
    assert states_of(house, "a")[6:] == ["Deleting", "gone"]
    assert house.served == []


async def test_what_is_there_as_wanted_is_not_asked_for_again(new_house, storehouse, shelf) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    shelf.broken.append(Unreachable("the hub is down"))
    later = await new_house()
    await later.copies.ensure(storehouse.want("a", ONE))
    assert shelf.asked == 1
    assert later.carrier.fetches == 0


async def test_the_policy_always_asks_the_source_and_fetches_what_changed(new_house, storehouse, shelf) -> None:
    house = await new_house()
    wanted = storehouse.want("a", ONE, policy="always")
    await house.copies.ensure(wanted)
    sent = house.carrier.sent
    await house.copies.ensure(wanted)
    assert (shelf.asked, house.carrier.sent) == (2, sent)
    shelf.models[ONE] = shelf.models[TWO]
    assert (await house.copies.ensure(wanted)).revision == "two"
    assert house.carrier.sent == sent + len(storehouse.A2)


async def test_again_fetches_all_files_although_they_are_there(new_house, storehouse) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    sent = house.carrier.sent
    await house.copies.ensure(storehouse.want("a", ONE), again=True)
    assert house.carrier.sent == 2 * sent
    assert storehouse.content(house) == {"a": "one"}


async def test_another_profile_is_noted_without_a_transfer(new_house, storehouse) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    record = ModelRecord(model="a", source=ONE, profile=Profile(slots=3), generation=7)
    await house.copies.ensure(record)
    assert house.copies.states()["a"].generation == 7
    later = await new_house()
    assert later.store.copies()["a"].manifest.profile.slots == 3
    assert house.carrier.fetches == 2


async def test_all_who_ask_for_the_same_share_one_piece_of_work(new_house, storehouse, shelf) -> None:
    house = await new_house()
    copies = await asyncio.gather(*(house.copies.ensure(storehouse.want("a", ONE)) for _ in range(20)))
    assert len({id(copy) for copy in copies}) == 1
    assert (shelf.asked, house.carrier.fetches) == (1, 2)


async def test_two_models_that_share_a_blob_share_its_transfer(new_house, storehouse) -> None:
    house = await new_house()
    await held(house)
    both = asyncio.gather(
        house.copies.ensure(storehouse.want("a", ONE)), house.copies.ensure(storehouse.want("b", "hf://o/b@one"))
    )
    await house.carrier.moving.wait()
    house.carrier.gate.set()
    await both
    assert house.carrier.sent == len(storehouse.A1) + len(storehouse.SHARED)
    assert storehouse.content(house) == {"a": "one", "b": "one"}


async def test_a_shared_transfer_goes_on_when_the_model_that_began_it_is_deleted(new_house, storehouse) -> None:
    house = await new_house()
    await held(house)
    first = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await house.carrier.moving.wait()
    second = asyncio.ensure_future(house.copies.ensure(storehouse.want("b", "hf://o/b@one")))
    while house.copies._shared._running.get(
        key := f"sha256-{hashlib.sha256(storehouse.SHARED).hexdigest()}"
    ) is None or (len(house.copies._shared._running[key].listeners) < 2):
        await asyncio.sleep(0)
    await house.copies.remove("a")
    with pytest.raises(Removed):
        await first
    house.carrier.gate.set()
    await second
    assert storehouse.content(house) == {"b": "one"}
    assert not storehouse.litter(house.store._ground.root.disk.root, house)


async def test_a_delete_ends_a_download_at_once_and_leaves_nothing(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    await held(house)
    asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await house.carrier.moving.wait()
    begun = time.monotonic()
    await house.copies.remove("a")
    took_s = time.monotonic() - begun
    with pytest.raises(Removed):
        await asked
    assert took_s < 0.1
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"store.json", "lock"}
    assert not house.copies.states()
    assert states_of(house, "a")[-1] == "gone"


async def test_a_delete_at_any_moment_of_an_install_leaves_nothing(storehouse, new_house, memory_path) -> None:
    """At each step of the disk the delete is asked for; the steps after it come to nothing."""
    number = 0
    while True:
        root, seen, reached, loop = memory_path / f"s{number}", [0], asyncio.Event(), asyncio.get_running_loop()

        def step(_: str, number: int = number, seen: Any = seen, reached: Any = reached, loop: Any = loop) -> None:
            if seen[0] == number:
                loop.call_soon_threadsafe(reached.set)
            seen[0] += 1

        house = await new_house(root=root, step=step)
        asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
        stop = asyncio.ensure_future(reached.wait())
        await asyncio.wait({stop, asked}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        await house.copies.remove("a")
        await asyncio.wait({asked})
        asked.exception()
        files = {path.name for path in root.rglob("*") if path.is_file()}
        assert files == {"store.json", "lock"}, f"step {number}: {files}"
        if not reached.is_set():
            break
        number += 3
    assert number > 30


async def test_a_download_that_nobody_waits_for_ends_and_goes_on_later(new_house, storehouse) -> None:
    house = await new_house()
    await held(house)
    asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await house.carrier.moving.wait()
    other = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait({asked})
    assert "a" in house.copies._jobs
    other.cancel()
    await asyncio.wait({other})
    house.carrier.gate.set()
    await house.copies.ensure(storehouse.want("a", ONE))
    assert house.carrier.sent == len(storehouse.A1) + len(storehouse.SHARED)
    assert states_of(house, "a")[-1] == "Ready"


async def test_a_stop_in_the_middle_is_gone_on_with_after_the_start(new_house, storehouse) -> None:
    house = await new_house()
    await held(house)
    asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await house.carrier.moving.wait()
    await house.copies.stop()
    with pytest.raises(Removed, match="the worker stops"):
        await asked
    later = await new_house()
    await later.copies.ensure(storehouse.want("a", ONE))
    assert house.carrier.sent > 0
    assert house.carrier.sent + later.carrier.sent == len(storehouse.A1) + len(storehouse.SHARED)


async def test_another_source_for_the_same_model_takes_over(new_house, storehouse) -> None:
    house = await new_house()
    await held(house)
    asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await house.carrier.moving.wait()
    house.carrier.gate.set()
    house.carrier.gate = asyncio.Event()
    newer = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", TWO)))
    with pytest.raises(Superseded):
        await asked
    house.carrier.gate.set()
    house.carrier.gate = None
    assert (await newer).revision == "two"


async def test_what_may_succeed_later_is_tried_again_and_says_when(new_house, storehouse, shelf) -> None:
    house = await new_house()
    shelf.broken = [Unreachable("no route"), Throttled("slow down", retry_after_s=0.02)]
    await house.copies.ensure(storehouse.want("a", ONE))
    failures = [record for _, record in house.published if record and record.state == "Failed"]
    assert [record.error for record in failures] == ["source_unreachable", "source_throttled"]
    assert all(record.next_retry_at is not None for record in failures)
    assert states_of(house, "a")[-1] == "Ready"


async def test_what_cannot_succeed_fails_at_once_with_its_reason(new_house, storehouse, shelf) -> None:
    house = await new_house()
    with pytest.raises(NotThere):
        await house.copies.ensure(storehouse.want("c", "hf://o/none"))
    record = house.copies.states()["c"]
    assert (record.state, record.error, record.next_retry_at) == ("Failed", "source_not_found", None)
    assert "not on the shelf" in record.reason
    assert shelf.asked == 1


async def test_after_the_last_try_it_has_failed_and_says_when_to_ask_again(new_house, storehouse, shelf) -> None:
    house = await new_house()
    shelf.broken = [Unreachable("no route") for _ in range(9)]
    with pytest.raises(Unreachable):
        await house.copies.ensure(storehouse.want("a", ONE))
    assert shelf.asked == 4
    assert house.copies.states()["a"].next_retry_at is not None


async def test_an_update_that_fails_leaves_the_old_copy_served_with_the_reason(new_house, storehouse) -> None:
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    house.carrier.spoil = True
    with pytest.raises(Corrupt):
        await house.copies.ensure(storehouse.want("a", TWO))
    record = house.copies.states()["a"]
    assert (record.state, record.error, record.revision) == ("Ready", "source_corrupt", "one")
    assert [copy.revision for copy in house.served] == ["one"]


async def test_progress_is_told_at_each_step_and_otherwise_seldom(new_house, storehouse) -> None:
    house = await new_house(interval_s=3600.0)
    heard: list[CopyProgress] = []
    await house.copies.ensure(storehouse.want("a", ONE), heard.append)
    assert [each.phase for each in heard] == ["resolving", "fetching", "checking"]
    total = len(storehouse.A1) + len(storehouse.SHARED)
    assert (heard[-1].bytes_done, heard[-1].bytes_total) == (total, total)
    assert (heard[-1].files_done, heard[-1].files_total) == (2, 2)
    assert len(house.published) < 10


async def test_all_states_that_were_told_are_legal_moves(new_house, storehouse, shelf) -> None:
    house = await new_house()
    shelf.broken = [Unreachable("no route")]
    for source in (ONE, TWO, ONE):
        await house.copies.ensure(storehouse.want("a", source))
        await house.copies.verify("a")
    await house.copies.remove("a")
    told = states_of(house, "a")[:-1]
    assert all(after in COPY_MOVES[before] for before, after in pairwise(told)), told


def test_an_illegal_move_is_an_error() -> None:
    records = Records("n1", lambda _model, _record: None)
    records.move("a", "Pending")
    with pytest.raises(IllegalMove):
        records.move("a", "Updating")


def test_the_meter_smooths_the_speed_and_guesses_the_rest() -> None:
    meter = Meter(bytes_total=10_000)
    meter.there(1000)
    meter.told(0.0)
    for second in range(1, 31):
        meter.came(100)
        told = meter.told(float(second))
    assert told.bytes_done == 4000
    assert told.speed_bytes_per_s == pytest.approx(100)
    assert told.eta_s == pytest.approx(60)
    assert meter.told(30.0).speed_bytes_per_s == told.speed_bytes_per_s
    slower = meter.told(35.0)
    assert 0 < slower.speed_bytes_per_s < 100


# -- the catalogue ---------------------------------------------------------------------------------
async def test_a_copy_is_served_with_its_profile_projector_and_draft(new_house, storehouse, shelf) -> None:
    files = {"m.gguf": storehouse.A1, "p.gguf": storehouse.A2, "d.gguf": storehouse.SHARED}
    shelf.publish("hf://o/v", "one", files, {"p.gguf": "projector", "d.gguf": "draft"})
    house = await new_house()
    profile = Profile(context_tokens=2048, slots=2, flags={"--no-mmap": True}, pinned=True)
    copy = await house.copies.ensure(storehouse.want("v", "hf://o/v", profile=profile))
    entry = entry_of(copy)
    assert (entry.path, entry.context_tokens, entry.slots, entry.pinned) == (copy.main, 2048, 2, True)
    assert entry.flags == {
        "mmproj": str(copy.path("p.gguf")),
        "model-draft": str(copy.path("d.gguf")),
        "no-mmap": True,
    }


async def test_the_settings_own_models_win_and_it_is_said(new_house, storehouse, caplog) -> None:
    house = await new_house()
    copy = await house.copies.ensure(storehouse.want("a", ONE))
    own = ModelSettings(model="a", path=Path("/mine.gguf"))
    assert merged([own], [copy]) == [own]
    assert "copy_not_served" in caplog.text
    assert [entry.model for entry in merged([], [copy])] == ["a"]


# -- limits, and what the log says -----------------------------------------------------------------
async def test_a_download_that_takes_longer_than_it_may_fails_and_goes_on_later(
    new_house, storehouse, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(storehouse.Few, "download_timeout_s", 0.2)
    house = await new_house()
    await held(house)
    with pytest.raises(TooLate, match=r"not here after 0\.2 s \(downloads\.download_timeout_s\)"):
        await house.copies.ensure(storehouse.want("a", ONE))
    record = house.copies.states()["a"]
    assert (record.state, record.error, record.next_retry_at) == ("Failed", "download_timeout", None)
    sent, house.carrier.gate = house.carrier.sent, None
    monkeypatch.setattr(storehouse.Few, "download_timeout_s", None)
    await house.copies.ensure(storehouse.want("a", ONE))
    assert house.copies.states()["a"].state == "Ready"
    assert 0 < sent < house.carrier.sent == len(storehouse.A1) + len(storehouse.SHARED), "what had come was kept"


async def test_progress_says_when_it_was_so_and_comes_as_often_as_is_set(new_house, storehouse, monkeypatch) -> None:
    monkeypatch.setattr(storehouse.Few, "progress_interval_s", 0.02)
    house = await new_house()
    await held(house)
    getting = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    async with asyncio.timeout(10):
        while len({record.progress.updated for _, record in house.published if record}) < 5:
            await asyncio.sleep(0.01)
    house.carrier.gate.set()
    await getting
    told = [record.progress.updated for _, record in house.published if record and record.progress.updated]
    assert told == sorted(told)
    assert abs(told[-1] - time.time()) < 60


async def test_the_log_has_the_words_that_its_readers_look_for(new_house, storehouse, caplog) -> None:
    caplog.set_level("DEBUG")
    house = await new_house()
    await house.copies.ensure(storehouse.want("a", ONE))
    await house.copies.verify("a")
    said = [record.getMessage() for record in caplog.records]
    assert "downloading file" in said
    assert said.count("verification passed") == 3, "each file as it came, and all of them again"


# -- with the real sources and the real fetcher ----------------------------------------------------
class NoSecrets:
    async def read(self, reference: str, *, key: str | None = None) -> str:
        raise AssertionError(reference)

    def variable(self, *names: str) -> str | None:
        return None


@pytest.fixture
async def real(tmp_path: Path) -> Any:
    settings = StoreSettings(reserved_disk_bytes=0)
    store = Store(tmp_path / "store", settings, environ={"HOME": str(tmp_path)})
    limits = DownloadSettings()
    fetcher = Fetcher(limits)
    copies = Copies(
        "n1",
        store,
        Parts(fetcher, NoSecrets()),
        limits,
        publish=lambda _model, _record: None,
        catalogue=lambda _: None,
    )
    await store.open()
    copies.begin()
    yield copies
    await copies.stop()
    fetcher.close()


async def test_a_file_of_the_node_is_copied_in(real, storehouse, tmp_path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(storehouse.A1)
    copy = await real.ensure(storehouse.want("f", f"file://{file}"))
    file.unlink()
    assert copy.main.read_bytes() == storehouse.A1
    await real.remove("f")
    assert not list((tmp_path / "store" / "blobs").iterdir())


async def test_a_local_file_is_served_in_place_and_never_deleted(real, storehouse, tmp_path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(storehouse.A1)
    copy = await real.ensure(storehouse.want("l", f"local://{file}"))
    assert copy.main == file
    assert copy.manifest.config["architecture"] == "llama"
    await real.verify("l")
    os.utime(file, ns=(0, 0))
    with pytest.raises(Corrupt):
        await real._store.refresh()
        await real.verify("l")
    assert (await real.ensure(storehouse.want("l", f"local://{file}"))).main == file
    await real.remove("l")
    assert file.read_bytes() == storehouse.A1
    assert not list((tmp_path / "store" / "models").iterdir())


async def test_a_local_file_that_is_not_there_is_refused(real, storehouse, tmp_path) -> None:
    with pytest.raises(NotThere):
        await real.ensure(storehouse.want("l", f"local://{tmp_path}/none.gguf"))


def test_a_remote_file_is_named_safely() -> None:
    assert RemoteFile("a/b.gguf", "https://h/b").path == "a/b.gguf"
