"""The keeper with real processes of the fake engine: which engines there are, and who goes for whom."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import ModelNotFound, Unavailable
from worker.plans import Cannot, Evict, Fits, Wait, Yield
from worker.settings import ModelSettings

MIB = 1 << 20
ONE_MIB = 100
"""A device of so many MiB has room for one of the small models, which need 65 MiB each."""

NewHouse = Callable[..., Awaitable[Any]]
COLD = {"preload": False}


# -- from the beginning


async def test_models_are_started_with_the_node_as_far_as_they_fit(house: NewHouse) -> None:
    node = await house({"a": {}, "b": {}, "c": {}}, sizes=(ONE_MIB, ONE_MIB))
    await node.until_ready("a", "b")
    assert {each.spec.devices for each in node.keeper.engines.values()} == {("cuda:0",), ("cuda:1",)}
    cold = {offer.model: offer for offer in node.keeper.offers()}["c"]
    assert node.keeper.of("c") == []
    assert cold.needed_bytes is not None


async def test_pinned_models_come_first_then_those_that_say_so(house: NewHouse) -> None:
    node = await house({"a": {}, "b": {"preload": True}, "c": {"pinned": True}}, sizes=(140,))
    await node.until_ready("c", "b")


async def test_a_model_that_says_no_stays_on_disk(house: NewHouse) -> None:
    node = await house({"a": COLD})
    assert not node.keeper.engines
    (offer,) = node.keeper.offers()
    assert (offer.model, offer.cost, offer.devices, offer.reason) == ("a", 2, ("cuda:0",), None)


async def test_at_most_so_many_engines_load_at_once(house: NewHouse) -> None:
    slow = {"flags": {"slow-start": "0.5"}}
    node = await house({"a": slow, "b": slow, "c": slow}, sizes=(300,), instance_start_concurrency=1)
    states: list[int] = []

    def done() -> bool:
        states.append(sum(each.state == "starting" for each in node.keeper.engines.values()))
        return len(node.ready()) == 3

    await node.until(done)
    assert max(states) == 1


async def test_a_file_that_cannot_be_used_is_shown_and_found_again_when_it_is_mended(
    house: NewHouse, tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"nothing")
    node = await house({})
    entry = ModelSettings.model_validate({"model": "b", "path": tmp_path / "broken.gguf", "preload": False})
    node.catalogue.replace([entry])
    await node.until(lambda: isinstance(node.keeper.plan("b"), Cannot))
    (offer,) = node.keeper.offers()
    assert "broken.gguf" in (offer.reason or "")
    write_model(tmp_path / "broken.gguf")
    node.offset_s += 11
    await node.until(lambda: isinstance(node.keeper.plan("b"), Fits))


# -- on demand


async def test_a_wanted_model_takes_the_place_of_an_idle_one(house: NewHouse) -> None:
    node = await house({"a": {}, "b": COLD})
    await node.until_ready("a")
    node.usage.served(node.engine_of("a").engine_id)
    first_pid = node.engine_of("a").pid
    assert isinstance(node.keeper.plan("b"), Evict)
    node.keeper.want("b", "a request")
    assert node.keeper.starting("b")
    assert node.engine_of("b").state == "stopped", "it starts when the other is gone"
    assert node.usage.yielding == {node.engine_of("a").engine_id}
    await node.until_ready("b")
    assert node.keeper.of("a") == []
    with pytest.raises(ProcessLookupError):
        os.kill(first_pid or 0, 0)
    assert node.switches() == 1


async def test_a_busy_engine_is_never_stopped_and_yields_when_its_turn_is_over(house: NewHouse) -> None:
    node = await house({"a": {}, "b": COLD})
    await node.until_ready("a")
    first = node.engine_of("a").engine_id
    node.usage.runs[first] = 1
    assert isinstance(node.keeper.plan("b"), Wait)
    node.keeper.want("b", "a request")
    assert node.keeper.of("b") == []
    node.offset_s += 3  # a turn is at least 2 s
    assert isinstance(node.keeper.plan("b", 3.0), Yield)
    node.keeper.want("b", "a request", waited_s=3.0)
    assert node.usage.yielding == {first}
    assert node.ready() == {first: "a"}
    node.usage.runs.clear()
    node.usage.served(first)
    node.keeper.stir()
    await node.until_ready("b")


async def test_an_engine_yields_no_more_when_nobody_wants_its_place(house: NewHouse) -> None:
    node = await house({"a": {}, "b": COLD})
    await node.until_ready("a")
    first = node.engine_of("a").engine_id
    node.usage.runs[first] = 1
    node.offset_s += 3
    node.keeper.want("b", "a request", waited_s=3.0)
    assert node.usage.yielding == {first}
    node.offset_s += 11
    node.keeper.tick(node.clock())
    assert node.usage.yielding == set()


async def test_a_pinned_engine_is_never_stopped_and_started_again_when_it_is_missing(house: NewHouse) -> None:
    node = await house({"a": {"pinned": True}, "b": COLD})
    await node.until_ready("a")
    node.offset_s += 1000
    plan = node.keeper.plan("b", math.inf)
    assert isinstance(plan, Wait)
    assert "pinned" in plan.reason
    node.keeper.want("b", "a request", waited_s=1000)
    node.keeper.tick(node.clock())
    assert list(node.ready().values()) == ["a"]
    assert node.usage.yielding == set()


async def test_models_asked_in_turn_are_all_served_with_one_switch_each(house: NewHouse) -> None:
    node = await house(dict.fromkeys("abc", COLD))
    for model in "abcabc":
        if model not in node.ready().values():
            node.keeper.want(model, "a request")
        await node.until_ready(model)
        node.usage.served(node.engine_of(model).engine_id)
    assert node.switches() == 5


async def test_a_model_in_demand_gets_a_second_engine_on_another_device(house: NewHouse) -> None:
    node = await house({"a": {}}, sizes=(ONE_MIB, ONE_MIB))
    await node.until_ready("a")
    node.keeper.want("a", "it spills")
    await node.until_ready("a", "a")
    assert [each.spec.devices for each in node.keeper.of("a")] == [("cuda:0",), ("cuda:1",)]
    assert isinstance(node.keeper.plan("a"), Wait)


async def test_no_more_than_one_engine_of_a_model_is_on_its_way(house: NewHouse) -> None:
    node = await house({"a": {"preload": False, "flags": {"slow-start": "0.5"}}}, sizes=(ONE_MIB, ONE_MIB))
    for _ in range(5):
        node.keeper.want("a", "a burst")
    assert len(node.keeper.of("a")) == 1


async def test_memory_of_engines_on_their_way_counts(house: NewHouse) -> None:
    slow = {"preload": False, "flags": {"slow-start": "0.3"}}
    node = await house({"a": slow, "b": slow})
    node.keeper.want("a", "a request")
    node.keeper.want("b", "a request")
    assert [each.spec.model for each in node.keeper.engines.values()] == ["a"]
    assert isinstance(node.keeper.plan("b"), Wait)


async def test_a_limit_of_memory_is_held_to(house: NewHouse) -> None:
    node = await house({"a": {}, "b": {}}, sizes=(1000,), memory_limit_bytes=ONE_MIB * MIB)
    await node.until_ready("a")
    assert node.keeper.of("b") == []
    node.usage.served(node.engine_of("a").engine_id)
    assert isinstance(node.keeper.plan("b"), Evict)


async def test_a_device_that_others_use_is_not_taken_from_them(house: NewHouse) -> None:
    node = await house({"a": COLD})
    node.devices.taken["cuda:0"] = 80 * MIB
    plan = node.keeper.plan("a")
    assert isinstance(plan, Wait)
    assert "used by other programs" in plan.reason


# -- who fails


async def test_an_engine_on_demand_that_keeps_failing_is_removed_and_left_alone_for_a_while(house: NewHouse) -> None:
    node = await house({"a": {"preload": False, "flags": {"exit-code": "3", "die-at-start": True}}})
    node.keeper.want("a", "a request")
    await node.until(lambda: not node.keeper.engines)
    plan = node.keeper.plan("a")
    assert isinstance(plan, Wait)
    assert plan.until_s is not None
    assert "tried again in" in plan.reason
    node.keeper.want("a", "a request")
    assert not node.keeper.engines
    node.offset_s += 61
    assert isinstance(node.keeper.plan("a"), Fits)


async def test_an_engine_of_the_settings_that_keeps_failing_is_kept_and_retried(house: NewHouse) -> None:
    node = await house({"a": {"flags": {"exit-code": "3", "die-at-start": True}}})
    seen: list[float] = []

    def crashed_often() -> bool:
        engine = node.engine_of("a")
        if engine.state == "crashed" and engine.since not in seen:
            seen.append(engine.since)
        return len(seen) >= 4

    await node.until(crashed_often)
    assert len(node.keeper.of("a")) == 1


async def test_a_killed_engine_starts_again_in_its_place(house: NewHouse) -> None:
    node = await house({"a": COLD})
    node.keeper.want("a", "a request")
    await node.until_ready("a")
    first, pid = node.engine_of("a"), node.engine_of("a").pid
    os.kill(pid or 0, signal.SIGKILL)
    await node.until(lambda: first.state == "ready" and first.pid not in (None, pid))
    assert node.engine_of("a") is first


# -- who leaves


async def test_an_engine_that_was_idle_too_long_is_stopped(house: NewHouse) -> None:
    node = await house({"a": {"idle_ttl_s": 50}, "b": {}, "c": {"pinned": True}}, sizes=(300,), idle_ttl_s=1000)
    await node.until_ready("a", "b", "c")
    node.offset_s += 60
    await node.until_ready("b", "c")
    node.offset_s += 1000
    await node.until_ready("c")


async def test_an_engine_that_is_used_is_not_idle(house: NewHouse) -> None:
    node = await house({"a": {"idle_ttl_s": 50}})
    await node.until_ready("a")
    engine = node.engine_of("a").engine_id
    node.usage.runs[engine] = 1
    node.offset_s += 60
    node.keeper.tick(node.clock())
    assert node.keeper.kept(engine).going is None  # type: ignore[union-attr]


async def test_an_operator_loads_and_unloads(house: NewHouse) -> None:
    node = await house({"a": COLD, "b": COLD}, sizes=(ONE_MIB, ONE_MIB))
    engine = await node.keeper.load("a", ("cuda:1",))
    assert engine.spec.devices == ("cuda:1",)
    await node.until_ready("a")
    assert await node.keeper.load("a") is engine, "it is there"
    assert await node.keeper.unload(model="a", reason="asked") == [engine.engine_id]
    assert not node.keeper.engines
    with pytest.raises(ModelNotFound):
        await node.keeper.load("nobody")
    with pytest.raises(ModelNotFound):
        await node.keeper.unload(model="a", reason="asked")


async def test_an_operators_load_that_can_never_be_is_refused_with_figures(house: NewHouse) -> None:
    node = await house({"a": COLD}, sizes=(50,))
    with pytest.raises(Unavailable, match=r"a needs 0\.06 GiB; engines may have at most cuda:0 0\.05 GiB"):
        await node.keeper.load("a")
    with pytest.raises(Unavailable, match="there is no such device"):
        await node.keeper.load("a", ("cuda:5",))


async def test_an_operators_load_waits_until_a_busy_engine_is_idle(house: NewHouse) -> None:
    node = await house({"a": {}, "b": COLD})
    await node.until_ready("a")
    first = node.engine_of("a").engine_id
    node.usage.runs[first] = 1
    loading = asyncio.create_task(node.keeper.load("b"))
    node.offset_s += 3
    await node.until(lambda: first in node.usage.yielding)
    assert not loading.done()
    node.usage.runs.clear()
    node.usage.served(first)
    node.keeper.stir()
    assert (await loading).spec.model == "b"
    await node.until_ready("b")


async def test_an_unloaded_engine_has_its_requests_ended_first(house: NewHouse) -> None:
    node = await house({"a": {}})
    await node.until_ready("a")
    engine = node.engine_of("a")
    node.usage.runs[engine.engine_id] = 1
    assert node.keeper.by_hand.put_down(model="a", reason="asked") == [engine.engine_id]
    assert engine.engine_id in node.usage.yielding
    await asyncio.sleep(0)
    assert engine.state == "ready"
    node.usage.runs.clear()
    node.keeper.stir()
    await node.until(lambda: not node.keeper.engines)


async def test_a_pinned_model_that_an_operator_unloads_stays_so_until_it_is_loaded(house: NewHouse) -> None:
    node = await house({"a": {"pinned": True}})
    await node.until_ready("a")
    await node.keeper.unload(model="a", reason="asked")
    node.keeper.tick(node.clock())
    assert not node.keeper.engines
    await node.keeper.load("a")
    await node.until_ready("a")


async def test_engines_of_models_that_leave_the_catalogue_are_stopped(house: NewHouse) -> None:
    node = await house({"a": {}, "b": {}}, sizes=(300,))
    await node.until_ready("a", "b")
    node.catalogue.replace([entry for entry in node.catalogue.entries if entry.model == "b"])
    await node.until_ready("b")
    assert not node.keeper.serves("a")
    await node.until(lambda: "engine-0" not in node.keeper.engines)


async def test_ids_are_the_lowest_that_are_free(house: NewHouse) -> None:
    node = await house({"a": {}, "b": {}}, sizes=(300,))
    await node.until_ready("a", "b")
    assert sorted(node.keeper.engines) == ["engine-0", "engine-1"]
    await node.keeper.unload(engine="engine-0", reason="asked")
    await node.keeper.load("a")
    assert sorted(node.keeper.engines) == ["engine-0", "engine-1"]


async def test_a_node_that_drains_starts_nothing(house: NewHouse) -> None:
    node = await house({"a": COLD})
    node.keeper.close()
    node.keeper.want("a", "a request")
    assert not node.keeper.engines
    with pytest.raises(Unavailable, match="draining"):
        await node.keeper.load("a")
