"""What a node asks of the line: for free slots only, nothing for an engine that yields, and stale jobs go back once."""

from __future__ import annotations

import asyncio
from typing import Any

from bus.topology import consumer_info


async def waiting_pulls(requester: Any, model: str = "m", lane: str = "interactive") -> int:
    """Pulls that stand at the server."""
    names = requester.bus.names
    info = await consumer_info(requester.bus, names.stream_queue, names.queue_durable(lane, model))
    return 0 if info is None else int(info.get("num_waiting", 0))


async def standing(requester: Any, count: int, lane: str = "interactive") -> None:
    """Until so many stand."""
    async with asyncio.timeout(10):
        while await waiting_pulls(requester, lane=lane) != count:
            await asyncio.sleep(0.02)


async def test_a_pull_stands_for_each_free_slot_of_all_engines(requester: Any, new_node: Any) -> None:
    node = await new_node("n1", slots=2)
    for _ in range(2):
        node.keeper.move(node.keeper.add("m"), "ready")
    await standing(requester, 4)
    await standing(requester, 4, "batch")


async def test_what_comes_for_an_engine_that_yields_goes_to_another_node(requester: Any, new_node: Any) -> None:
    node, other = await new_node("n1"), await new_node("n2")
    for each in (node, other):
        each.keeper.move(each.keeper.add("m"), "ready")
    await standing(requester, 2)
    node.serving.slots.set_yielding("engine-0", True)
    for _ in range(4):
        await requester.put("m")
    await requester.count(4)
    assert (len(node.backend.asked), len(other.backend.asked)) == (0, 4)


async def test_a_job_that_is_not_wanted_any_more_is_given_back_once(requester: Any, new_node: Any, until: Any) -> None:
    node = await new_node("n1")
    requester.demand("m")
    await standing(requester, 1)
    node.serving.starts.cost = lambda model: None
    node.inbox.want_for("m")
    await requester.put("m")
    await asyncio.sleep(0.3)  # time enough for a spin to show
    names = requester.bus.names
    info = await consumer_info(requester.bus, names.stream_queue, names.queue_durable("interactive", "m"))
    assert info is not None
    assert info["delivered"]["consumer_seq"] <= 2
    assert node.keeper.wanted == []


async def test_cold_pulls_run_out_soon_after_the_demand(requester: Any, new_node: Any) -> None:
    await new_node("n1")
    requester.demand("m")
    await standing(requester, 1)
    await standing(requester, 0)


async def test_a_preferred_engine_gets_the_request(requester: Any, new_node: Any, until: Any) -> None:
    node = await new_node("n1", slots=2)
    for _ in range(2):
        node.keeper.move(node.keeper.add("m"), "ready")
    node.backend.go.clear()
    for _ in range(2):
        await requester.put("m", engine="engine-1")
    await until(lambda: node.serving.slots.busy("engine-1") == 2)
    assert node.serving.slots.busy("engine-0") == 0
    node.backend.go.set()


async def test_the_limit_of_a_device_bounds_what_is_taken(requester: Any, new_node: Any, until: Any) -> None:
    node = await new_node("n1", slots=4, device_limit=2)
    node.keeper.move(node.keeper.add("m"), "ready")
    node.backend.go.clear()
    for _ in range(5):
        await requester.put("m")
    await until(lambda: len(node.backend.asked) == 2)
    assert node.serving.active == 2
    node.backend.go.set()
    await requester.count(5)


async def test_models_that_come_later_are_heard(requester: Any, new_node: Any) -> None:
    node = await new_node("n1", models=("m",))
    node.keeper.models.add("late")
    async with asyncio.timeout(5):
        while "late" not in node.inbox._groups:
            await asyncio.sleep(0.02)
    await requester.put("late")
    requester.demand("late")
    await requester.count(1)
