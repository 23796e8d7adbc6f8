"""Engines follow their models: other files, another profile, no model at all. No answer is cut for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from worker.renewal import PATIENCE_S
from worker.settings import ModelSettings

ONE_MIB, TWO_MIB = 100, 200
"""Devices with room for one and for two of the small models."""

NewHouse = Callable[..., Awaitable[Any]]
Update = Callable[..., None]


@pytest.fixture
def update(tmp_path: Path, write_model: Callable[..., Path]) -> Update:
    """`update(node, "a", **profile)`: another file for the model, and nothing else in the catalogue."""
    count = 0

    def other(node: Any, model: str, *, whole: bool = True, pairs: Any = None, **profile: Any) -> None:
        nonlocal count
        count += 1
        path = tmp_path / f"{model}-{count}.gguf"
        write_model(path, pairs) if whole else path.write_bytes(b"an error page")
        given = {"model": model, "path": path, "preload": False} | profile
        node.keeper.replace([ModelSettings.model_validate(given)])

    return other


def file_of(engine: Any) -> str:
    return engine.spec.path.name


def files(node: Any) -> list[str]:
    """Of the engines that are ready and take requests."""
    kept = node.keeper.kept
    return sorted(
        file_of(each) for name, each in node.keeper.engines.items() if each.state == "ready" and not kept(name).going
    )


async def settled(node: Any, rounds: int = 5) -> None:
    """All that is due has been done."""
    await node.until(lambda: not any(task.get_name().startswith("read models") for task in asyncio.all_tasks()))
    for _ in range(rounds):
        node.keeper.tick(node.clock())
        await asyncio.sleep(0)


async def test_a_new_engine_takes_over_while_the_old_one_ends_its_stream(house: NewHouse, update: Update) -> None:
    node = await house({"a": {}}, sizes=(TWO_MIB,))
    await node.until_ready("a")
    old = node.engine_of("a")
    node.usage.runs[old.engine_id] = 1
    update(node, "a")
    assert files(node) == ["a.gguf"], "it serves until the new one is ready"
    await node.until(lambda: files(node) == ["a-1.gguf"])
    assert old.state == "ready", "its stream goes on"
    assert old.engine_id in node.usage.yielding
    node.usage.runs.clear()
    node.keeper.stir()
    await node.until(lambda: old.engine_id not in node.keeper.engines)
    assert files(node) == ["a-1.gguf"]


async def test_without_room_for_both_an_idle_engine_goes_first(house: NewHouse, update: Update) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    update(node, "a")
    await node.until(lambda: files(node) == ["a-1.gguf"])
    assert len(node.keeper.engines) == 1


async def test_without_room_for_both_a_busy_engine_serves_on_for_a_while(house: NewHouse, update: Update) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    old = node.engine_of("a")
    node.usage.runs[old.engine_id] = 1
    update(node, "a")
    await settled(node)
    assert node.usage.yielding == set()
    node.offset_s += PATIENCE_S + 1
    node.keeper.tick(node.clock())
    assert node.usage.yielding == {old.engine_id}
    await settled(node)
    assert old.state == "ready", "what runs in it ends"
    node.usage.runs.clear()
    node.keeper.stir()
    await node.until(lambda: files(node) == ["a-1.gguf"])


@pytest.mark.parametrize("size_mib", [ONE_MIB, TWO_MIB])
async def test_a_new_file_that_cannot_be_read_changes_nothing_until_it_is_mended(
    house: NewHouse, update: Update, tmp_path: Path, write_model: Callable[..., Path], size_mib: int
) -> None:
    node = await house({"a": {}}, sizes=(size_mib,))
    await node.until_ready("a")
    old = node.engine_of("a")
    update(node, "a", whole=False)
    await settled(node)
    assert node.ready() == {old.engine_id: "a"}
    assert old.engine_id not in node.usage.yielding
    write_model(tmp_path / "a-1.gguf")
    node.offset_s += 11
    await node.until(lambda: files(node) == ["a-1.gguf"])


async def test_a_new_file_that_fails_to_load_beside_the_old_engine_changes_nothing(
    house: NewHouse, update: Update
) -> None:
    node = await house({"a": {"preload": False}}, sizes=(TWO_MIB,))
    node.keeper.want("a", "a request")
    await node.until_ready("a")
    old = node.engine_of("a")
    update(node, "a", flags={"die-at-start": True})
    await node.until(lambda: len(node.keeper.engines) == 2)
    await node.until(lambda: len(node.keeper.engines) == 1)
    await settled(node)
    assert files(node) == ["a.gguf"]
    assert old.engine_id not in node.usage.yielding
    update(node, "a")
    await node.until(lambda: files(node) == ["a-2.gguf"])


async def test_a_new_file_that_would_never_fit_changes_nothing(house: NewHouse, update: Update) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    old = node.engine_of("a")
    update(node, "a", pairs={"llama.block_count": 2000})
    await settled(node)
    assert node.ready() == {old.engine_id: "a"}
    assert old.engine_id not in node.usage.yielding


async def test_a_model_with_two_engines_is_never_without(house: NewHouse, update: Update) -> None:
    node = await house({"a": {}}, sizes=(ONE_MIB, ONE_MIB))
    await node.until_ready("a")
    node.keeper.want("a", "it spills")
    await node.until_ready("a", "a")
    update(node, "a")
    seen: list[int] = []

    def renewed() -> bool:
        seen.append(len(files(node)))
        return files(node) == ["a-1.gguf", "a-1.gguf"]

    await node.until(renewed)
    assert min(seen) == 1


async def test_another_profile_of_the_same_file_is_followed_and_a_pin_alone_is_not(
    house: NewHouse, tmp_path: Path
) -> None:
    node = await house({"a": {}}, sizes=(TWO_MIB,))
    await node.until_ready("a")
    old = node.engine_of("a")
    same = {"model": "a", "path": tmp_path / "a.gguf"}
    node.keeper.replace([ModelSettings.model_validate(same | {"pinned": True})])
    await settled(node)
    assert node.engine_of("a") is old
    node.keeper.replace([ModelSettings.model_validate(same | {"flags": {"chunks": "3"}})])
    await node.until(lambda: node.keeper.of("a") and old not in node.keeper.of("a") and files(node) == ["a.gguf"])


async def test_a_model_that_is_deleted_while_it_answers_ends_its_answers_first(house: NewHouse) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    old = node.engine_of("a")
    node.usage.runs[old.engine_id] = 1
    node.keeper.replace([])
    assert not node.keeper.serves("a")
    assert old.engine_id in node.usage.yielding
    await settled(node)
    assert old.state == "ready"
    node.usage.runs.clear()
    node.keeper.stir()
    await node.until(lambda: not node.keeper.engines)


async def test_a_model_that_comes_with_preload_is_started_and_others_wait_for_requests(
    house: NewHouse, update: Update
) -> None:
    node = await house({}, sizes=(TWO_MIB,))
    update(node, "a")
    await settled(node)
    assert not node.keeper.engines
    update(node, "b", preload=True)
    await node.until_ready("b")


async def test_what_a_new_model_takes_is_offered_as_soon_as_its_file_was_read(house: NewHouse, update: Update) -> None:
    node = await house({})
    assert node.keeper.offers() == ()
    told = asyncio.Event()
    node.on_offers = told.set
    update(node, "a")
    async with asyncio.timeout(5):
        while [offer.cost for offer in node.keeper.offers()] != [2]:
            told.clear()
            await told.wait()
