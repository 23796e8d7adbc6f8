"""Looks at the line on a real server, and starts for clients that send no demand."""

from __future__ import annotations

from typing import Any

from bus.topology import ensure_consumer
from schemas import topology
from worker.appetite import Look
from worker.backlog import Backlog


def looker(requester: Any, *, asked_here: int = 0) -> Backlog:
    """Looks for a test."""

    def nothing(look: Look) -> None:
        raise AssertionError("nobody runs it")

    return Backlog(requester.bus, tuple, nothing, asked_here=lambda lane, model: asked_here)


async def test_a_look_counts_both_lanes_of_the_models_of_interest(requester: Any) -> None:
    for lane, model in (("interactive", "m.1"), ("batch", "m.1"), ("interactive", "stranger")):
        await requester.put(model, lane=lane)
    look = await looker(requester).look({"m.1", "quiet"})
    assert (look.waiting, look.abandoned) == ({"m.1": 2}, {"m.1"})


async def test_a_line_that_somebody_asks_for_is_not_abandoned(requester: Any, new_node: Any) -> None:
    node = await new_node("n1")
    node.keeper.move(node.keeper.add("m"), "ready")
    node.backend.go.clear()
    await requester.put("m")
    await node.backend.arrived.wait()
    look = await looker(requester).look({"m"})
    assert look.waiting == {"m": 1}
    assert look.abandoned == set()
    node.backend.go.set()


async def test_a_line_with_a_consumer_that_nobody_pulls_is_abandoned(requester: Any) -> None:
    await ensure_consumer(requester.bus, topology.line(requester.bus.names, "interactive", "m"))
    await requester.put("m")
    assert (await looker(requester).look({"m"})).abandoned == {"m"}


async def test_a_request_that_nobody_demanded_is_found_in_the_line(requester: Any, new_node: Any) -> None:
    node = await new_node("n1")
    await requester.put("m")
    await requester.count(1)
    assert len(node.keeper.started) == 1


async def test_lines_of_models_of_other_nodes_are_none_of_its_business(requester: Any, new_node: Any) -> None:
    node = await new_node("n1", models=("m",))
    await requester.put("other")
    await requester.put("m")
    await requester.count(1)
    assert {model for model, _ in node.keeper.wanted} == {"m"}
