"""An update that does not load takes no model down: what was served before comes back, as long as it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from worker.settings import ModelSettings

TWO_MIB = 200
NewHouse = Callable[..., Awaitable[Any]]
Update = Callable[..., ModelSettings]


@pytest.fixture
def update(tmp_path: Path, write_model: Callable[..., Path]) -> Update:
    """`update(node, "a", **profile)`: another file for the model."""
    count = 0

    def other(node: Any, model: str, **profile: Any) -> ModelSettings:
        nonlocal count
        count += 1
        path = write_model(tmp_path / f"{model}-{count}.gguf")
        given = ModelSettings.model_validate({"model": model, "path": path, "preload": False} | profile)
        node.keeper.replace([given])
        return given

    return other


def files(node: Any) -> list[str]:
    """Of the engines that are ready and take requests."""
    kept = node.keeper.kept
    here = node.keeper.engines.items()
    return sorted(each.spec.path.name for name, each in here if each.state == "ready" and not kept(name).going)


def went_back(node: Any) -> int:
    return sum(kind == "model_went_back" for kind, _ in node.events)


def former(node: Any) -> list[str]:
    return [path.name for path in node.keeper.former_paths]


@pytest.mark.parametrize("preload", [True, False])
async def test_where_there_is_no_room_for_two_the_old_file_serves_again(
    house: NewHouse, update: Update, preload: bool
) -> None:
    node = await house({"a": {"preload": preload}})
    node.keeper.want("a", "a request")
    await node.until_ready("a")
    assert former(node) == []
    bad = update(node, "a", flags={"die-at-start": True}, preload=preload)
    assert former(node) == ["a.gguf"], "its files must not go yet"
    await node.until(lambda: went_back(node) == 1)
    await node.until(lambda: files(node) == ["a.gguf"])
    (offer,) = node.keeper.offers()
    assert offer.reason is not None and "its last change, which failed to load" in offer.reason
    assert former(node) == [], "it is what is served"
    node.keeper.replace([bad])
    for _ in range(5):
        node.keeper.tick(node.clock())
        await asyncio.sleep(0)
    assert files(node) == ["a.gguf"] and went_back(node) == 1, "what was refused is not tried again by itself"


async def test_the_next_update_is_tried_and_the_one_before_it_is_let_go_then(house: NewHouse, update: Update) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    update(node, "a", flags={"die-at-start": True})
    await node.until(lambda: went_back(node) == 1 and files(node) == ["a.gguf"])
    update(node, "a")
    assert former(node) == ["a.gguf"]
    await node.until(lambda: files(node) == ["a-2.gguf"])
    assert former(node) == []
    (offer,) = node.keeper.offers()
    assert "last change" not in str(offer.reason)


async def test_two_bad_updates_in_a_row_lead_back_to_what_loaded(house: NewHouse, update: Update) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    update(node, "a", flags={"die-at-start": True})
    await node.until(lambda: any(each.spec.path.name == "a-1.gguf" for each in node.keeper.engines.values()))
    update(node, "a", flags={"die-at-start": True})
    await node.until(lambda: went_back(node) >= 1 and files(node) == ["a.gguf"])


async def test_an_operator_who_puts_it_down_and_loads_it_again_has_the_newest_tried(
    house: NewHouse, update: Update, tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    update(node, "a", flags={"die-at-start": True})
    await node.until(lambda: went_back(node) == 1 and files(node) == ["a.gguf"])
    await node.keeper.unload(model="a", reason="by hand")
    assert former(node) == ["a.gguf"]
    node.keeper.want("a", "a request")
    await node.until(lambda: went_back(node) == 2)
    await node.until(lambda: files(node) == ["a.gguf"])


async def test_a_model_that_was_never_loaded_keeps_no_old_files(house: NewHouse, update: Update) -> None:
    node = await house({"a": {"preload": False}})
    update(node, "a")
    assert former(node) == []
    node.keeper.want("a", "a request")
    await node.until_ready("a")
    await node.keeper.unload(model="a", reason="by hand")
    update(node, "a")
    assert former(node) == [], "nobody served it when it was changed"
    node.keeper.replace([])
    assert former(node) == []


async def test_beside_an_old_engine_nothing_goes_back(house: NewHouse, update: Update) -> None:
    node = await house({"a": {"preload": False}}, sizes=(TWO_MIB,))
    node.keeper.want("a", "a request")
    await node.until_ready("a")
    update(node, "a", flags={"die-at-start": True})
    await node.until(lambda: len(node.keeper.engines) == 2)
    await node.until(lambda: len(node.keeper.engines) == 1)
    assert files(node) == ["a.gguf"] and went_back(node) == 0
    assert former(node) == ["a.gguf"]
