"""What a download that was not ended leaves: nothing once its model is deleted, and no bytes that count twice."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from worker.copyjob import Watch
from worker.shelving import Shelving
from worker.sources import Stalled
from worker.store.errors import Removed
from worker.store.progress import Meter

ONE, B_ONE = "hf://o/a@one", "hf://o/b@one"


def left(root: Path) -> list[str]:
    found = [path for name in ("blobs", "partial", "trash", "models") for path in (root / name).rglob("*")]
    return sorted(str(path.relative_to(root)) for path in found)


class Breaking:
    """The carrier, whose transfers stall after some chunks, for as long as `breaks`. A file that is named in `later`
    begins once another one is a blob."""

    def __init__(self, house: Any, later: str = "") -> None:
        self.breaks = True
        self._inner, self._later = house.carrier.fetch, later
        self._blobs = house.store._ground.root.disk.path(("blobs",))
        house.carrier.fetch = self.fetch

    async def fetch(self, file: Any, sign: Any, part: Any, on_bytes: Any, *, source: str = "") -> Any:
        chunks = 0
        while file.path == self._later and not any(self._blobs.iterdir()):
            await asyncio.sleep(0.005)

        def came(bytes_: int) -> None:
            nonlocal chunks
            on_bytes(bytes_)
            chunks += 1
            if self.breaks and chunks > 2:
                raise Stalled("it is too slow", retry_after_s=60.0)

        return await self._inner(file, sign, part, came, source=source)


async def backed_off(house: Any, model: str) -> None:
    while (record := house.copies.states().get(model)) is None or record.state != "Failed":
        await asyncio.sleep(0.005)


async def test_a_delete_while_the_next_try_is_waited_for_leaves_nothing(new_house, storehouse, tmp_path) -> None:
    house = await new_house()
    Breaking(house)
    asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await backed_off(house, "a")
    assert any(name.endswith("/data") for name in left(tmp_path / "store"))
    await house.copies.remove("a")
    with pytest.raises(Removed):
        await asked
    assert left(tmp_path / "store") == []


async def test_a_delete_while_a_turn_is_waited_for_leaves_nothing_of_an_earlier_worker(
    new_house, storehouse, tmp_path
) -> None:
    first = await new_house()
    Breaking(first)
    asked = asyncio.ensure_future(first.copies.ensure(storehouse.want("a", ONE)))
    await backed_off(first, "a")
    await first.copies.stop()
    with pytest.raises(Removed):
        await asked
    later = await new_house()
    later.copies._slots = asyncio.Semaphore(0)
    waiting = asyncio.ensure_future(later.copies.ensure(storehouse.want("a", ONE)))
    await asyncio.sleep(0)
    assert left(tmp_path / "store")
    await later.copies.remove("a")
    with pytest.raises(Removed):
        await waiting
    assert left(tmp_path / "store") == []


async def test_a_delete_after_a_cancelled_download_and_a_restart_leaves_nothing(
    new_house, storehouse, tmp_path
) -> None:
    first = await new_house()
    Breaking(first)
    asked = asyncio.ensure_future(first.copies.ensure(storehouse.want("a", ONE)))
    await backed_off(first, "a")
    asked.cancel()
    await asyncio.wait({asked})
    await first.copies.stop()
    later = await new_house()
    assert left(tmp_path / "store")
    await later.copies.remove("a", retain=True)
    assert left(tmp_path / "store")
    await later.copies.remove("a")
    assert left(tmp_path / "store") == []


@pytest.mark.parametrize("known", [True, False])
async def test_a_delete_takes_no_part_that_another_model_waits_for(
    new_house, storehouse, tmp_path, shelf, known
) -> None:
    house = await new_house()
    shelf.told_digest = storehouse.sha256 if known else lambda _: None
    breaking = Breaking(house)
    wants = [storehouse.want(model, B_ONE) for model in ("b", "c")]
    asked = [asyncio.ensure_future(house.copies.ensure(want)) for want in wants]
    await backed_off(house, "b")
    await backed_off(house, "c")
    sent = house.carrier.sent
    await house.copies.remove("b")
    assert isinstance((await asyncio.gather(asked[0], return_exceptions=True))[0], Removed)
    assert any(name.endswith("/data") for name in left(tmp_path / "store"))
    asked[1].cancel()
    await asyncio.wait({asked[1]})
    breaking.breaks = False
    await house.copies.ensure(wants[1])
    assert sent
    assert house.carrier.sent == len(storehouse.SHARED)
    await house.copies.remove("c")
    assert left(tmp_path / "store") == []


async def test_a_model_that_is_deleted_while_it_comes_takes_no_part_of_one_that_is_to_be_tried_again(
    new_house, storehouse, tmp_path
) -> None:
    house = await new_house()
    breaking = Breaking(house)
    later = asyncio.ensure_future(house.copies.ensure(storehouse.want("b", B_ONE)))
    await backed_off(house, "b")
    breaking.breaks = False
    house.carrier.gate = asyncio.Event()
    house.carrier.moving.clear()
    comes = asyncio.ensure_future(house.copies.ensure(storehouse.want("c", B_ONE)))
    await house.carrier.moving.wait()
    sent = house.carrier.sent
    await house.copies.remove("c")
    assert isinstance((await asyncio.gather(comes, return_exceptions=True))[0], Removed)
    assert any(name.endswith("/data") for name in left(tmp_path / "store"))
    later.cancel()
    await asyncio.wait({later})
    house.carrier.gate.set()
    await house.copies.ensure(storehouse.want("b", B_ONE))
    assert 0 < sent < house.carrier.sent == len(storehouse.SHARED)


async def test_a_file_that_came_of_a_model_whose_other_file_did_not_goes_with_a_delete(
    new_house, storehouse, shelf, tmp_path
) -> None:
    house = await new_house()
    shelf.publish("hf://o/z@one", "one", {"z.gguf": storehouse.model_bytes("z", 30_000), "small.bin": b"small"})
    Breaking(house, later="z.gguf")
    asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("z", "hf://o/z@one")))
    await backed_off(house, "z")
    assert any(name.startswith("blobs/") for name in left(tmp_path / "store"))
    await house.copies.remove("z")
    await asyncio.wait({asked})
    assert isinstance(asked.exception(), Removed)
    assert left(tmp_path / "store") == []


# -- counting ----------------------------------------------------------------------------------------------------------
class Counting(Watch):
    def __init__(self) -> None:
        self.bytes = 0

    def came(self, model: str, count_bytes: int) -> None:
        self.bytes += count_bytes


async def test_bytes_that_an_earlier_worker_left_are_there_and_have_not_come(new_house, storehouse) -> None:
    first = await new_house()
    Breaking(first)
    asked = asyncio.ensure_future(first.copies.ensure(storehouse.want("b", B_ONE)))
    await backed_off(first, "b")
    await first.copies.stop()
    await asyncio.wait({asked})
    assert isinstance(asked.exception(), Removed)
    watch, told = Counting(), list[Any]()
    later = await new_house(watch=watch)
    await later.copies.ensure(storehouse.want("b", B_ONE), told.append)
    assert first.carrier.sent > 0
    assert watch.bytes == later.carrier.sent == len(storehouse.SHARED) - first.carrier.sent
    assert told[-1].bytes_done == len(storehouse.SHARED)


def test_what_is_there_makes_no_speed_and_what_did_not_hold_takes_none_away() -> None:
    meter = Meter(bytes_total=100_000)
    meter.told(0.0)
    meter.there(90_000)
    assert meter.told(1.0).speed_bytes_per_s == 0
    assert meter.told(1.0).eta_s is None
    meter.came(100)
    meter.came(-90_100)
    told = meter.told(2.0)
    assert told.bytes_done == 0
    assert told.speed_bytes_per_s == pytest.approx(10)


async def test_how_long_nothing_has_come_counts_only_while_something_is_fetched(new_house, storehouse) -> None:
    house, now = await new_house(), [0.0]
    facts: dict[str, Any] = {"opened": lambda: True, "unusable": lambda: None, "tasks_waiting": lambda: 0}
    shelving = Shelving(house.store, house.copies, **facts, monotonic=lambda: now[0])
    now[0] = 100.0
    assert shelving.idle_s() == 0
    house.carrier.gate = asyncio.Event()
    asked = asyncio.ensure_future(house.copies.ensure(storehouse.want("a", ONE)))
    await house.carrier.moving.wait()
    await asyncio.sleep(0.02)
    assert shelving.idle_s() == 0
    now[0] = 1100.0
    assert shelving.idle_s() == 1000
    house.carrier.gate.set()
    await asked
    assert shelving.idle_s() == 0
