"""What is told of a copy that is wanted and does not come yet, by the real owner of the copies."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from worker.sources import NotThere

FAKE = Path(__file__).parents[2] / "fakes" / "storehouse.py"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Any]:
    module = sys.modules.get("fakes_storehouse")
    if module is None:
        spec = importlib.util.spec_from_file_location("fakes_storehouse", FAKE)
        assert spec is not None and spec.loader is not None
        module = sys.modules["fakes_storehouse"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    made = await module.House(tmp_path / "store", module.shelf()).open()
    made.want = module.want
    yield made
    await made.copies.stop()


async def test_a_copy_that_waits_says_why_and_until_when_and_comes_all_the_same(house: Any) -> None:
    want = house.want("a", "hf://o/a@one")
    house.copies.postpone(want, "waits a little", 1234.0)
    record = house.copies.states()["a"]
    assert (record.state, record.reason, record.next_retry_at) == ("Pending", "waits a little", 1234.0)
    await house.copies.ensure(want)
    record = house.copies.states()["a"]
    assert (record.state, record.reason, record.next_retry_at) == ("Ready", None, None)
    house.copies.postpone(want, "no matter", 1.0)
    assert house.copies.states()["a"] is record


async def test_what_waits_and_is_not_wanted_any_more_leaves_no_trace(house: Any) -> None:
    house.copies.postpone(house.want("a", "hf://o/a@one"), "waits a little", 1234.0)
    await house.copies.remove("a")
    assert house.copies.states() == {}
    assert house.published[-1] == ("a", None)


async def test_after_a_failure_the_reason_stays_and_the_next_try_is_told(house: Any) -> None:
    want = house.want("a", "hf://o/nowhere")
    with pytest.raises(NotThere):
        await house.copies.ensure(want)
    before = house.copies.states()["a"]
    house.copies.postpone(want, "later", 99.0)
    after = house.copies.states()["a"]
    assert (after.state, after.reason, after.error, after.next_retry_at) == (
        "Failed",
        before.reason,
        "source_not_found",
        99.0,
    )
