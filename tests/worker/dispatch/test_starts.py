"""Starting on demand: nodes that race for a cold model on one real server, and what becomes of held requests."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from schemas.demand import Demand
from worker.plans import Cannot, Wait

SPILL = Demand(kind="spill", oldest_s=5.0).encode()


async def demanding(requester: Any, model: str, payload: bytes = b"") -> None:
    """What a gateway does while nothing warm can take a request."""
    while True:
        requester.demand(model, payload)
        await asyncio.sleep(0.3)


@pytest.fixture
async def demand(requester: Any) -> Any:
    """`demand("m", kind)` → demands go on until the end of the test, or until it is cancelled."""
    tasks: list[asyncio.Task[None]] = []

    def begin(model: str, payload: bytes = b"") -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(demanding(requester, model, payload)))
        return tasks[-1]

    yield begin
    for task in tasks:
        task.cancel()


async def test_a_cold_model_is_started_for_the_request_that_asked_for_it(
    new_node: Any, requester: Any, demand: Any
) -> None:
    node = await new_node("n1")
    await requester.put("m")
    demand("m")
    await requester.count(1)
    assert b"hello" in requester.answers[0].payload
    assert node.keeper.wanted == [("m", "request r0")]


async def test_two_nodes_that_race_for_a_cold_model_start_one_engine(
    new_node: Any, requester: Any, demand: Any
) -> None:
    nodes = [await new_node(f"n{number}") for number in range(2)]
    for _ in range(4):
        await requester.put("m")
    demand("m")
    await requester.count(4)
    assert sum(len(node.keeper.started) for node in nodes) == 1


async def test_a_burst_spreads_only_after_spill_after(new_node: Any, requester: Any, demand: Any) -> None:
    nodes = [await new_node(f"n{number}", slots=2, spill_after_s=1.0) for number in range(3)]
    for node in nodes:
        node.backend.go.clear()
    await asyncio.gather(*(requester.put("m") for _ in range(200)))
    demand("m", SPILL)
    starts: list[float] = []
    async with asyncio.timeout(20):
        while len(starts) < 3:
            await asyncio.sleep(0.02)
            starts = sorted(at for node in nodes for at in node.keeper.started)
    assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(starts)), starts
    for node in nodes:
        node.backend.go.set()
    await requester.count(200, 30)
    assert len(requester.answers) == 200


async def test_the_node_with_the_lower_cost_starts_it(new_node: Any, requester: Any, demand: Any) -> None:
    costly = await new_node("costly", cost=8)
    cheap = await new_node("cheap", cost=1)
    await requester.put("m")
    demand("m")
    await requester.count(1)
    assert (len(cheap.keeper.started), len(costly.keeper.started)) == (1, 0)


async def test_a_lease_that_another_node_has_sends_the_request_back(
    new_node: Any, requester: Any, demand: Any, until: Any
) -> None:
    node = await new_node("n1", spill_after_s=2.0)
    await node.serving.starts._bucket.create("start.m", b"another", ttl_s=2.0)  # pyright: ignore[reportPrivateUsage]
    await requester.put("m")
    demand("m")
    await until(lambda: node.serving.starts._leases)  # pyright: ignore[reportPrivateUsage]
    assert node.keeper.wanted == []
    await requester.count(1)
    assert len(node.keeper.started) == 1


async def test_a_place_that_another_model_took_while_the_lease_was_asked_for_sends_the_request_elsewhere(
    new_node: Any, requester: Any, demand: Any
) -> None:
    """It is not kept waiting for that model's turn while another node is empty."""
    full, empty = await new_node("full", cost=1), await new_node("empty", cost=5)
    create = full.serving.starts._create

    async def slow(model: str, request_id: str) -> Any:
        full.keeper.answer = Wait("another model is being loaded here")
        return await create(model, request_id)

    full.serving.starts._create = slow
    await requester.put("m")
    demand("m")
    await requester.count(1)
    assert (full.keeper.started, len(empty.keeper.started)) == ([], 1)


async def test_held_requests_are_served_first_and_those_behind_them_by_warm_pulls(
    new_node: Any, requester: Any, demand: Any, until: Any
) -> None:
    node = await new_node("n1", at_once=False)
    first = await requester.put("m")
    demand("m")
    await until(lambda: node.keeper.started)
    for _ in range(3):
        await requester.put("m")
    assert len(node.serving.waiting) == 1
    node.keeper.move(node.keeper.of("m")[0], "ready")
    await requester.count(4)
    assert requester.answers[0].subject == f"answers.{first}"


async def test_a_held_request_survives_a_load_that_takes_longer_than_the_servers_patience(
    new_node: Any, requester: Any, demand: Any, until: Any
) -> None:
    node = await new_node("n1", at_once=False)
    other = await new_node("n2", at_once=False)
    await requester.put("m")
    demand("m")
    await until(lambda: node.keeper.started or other.keeper.started)
    chosen, idle = (node, other) if node.keeper.started else (other, node)
    await asyncio.sleep(3.0)  # the line's ack_wait is 2 s: the time itself is what is tested
    assert len(chosen.serving.waiting) == 1
    assert not idle.keeper.started
    chosen.keeper.move(chosen.keeper.of("m")[0], "ready")
    await requester.count(1)
    await asyncio.sleep(0.1)
    assert len(requester.answers) == 1


async def test_a_start_that_fails_gives_the_request_back_and_lets_another_node_try(
    new_node: Any, requester: Any, demand: Any, until: Any
) -> None:
    broken = await new_node("broken", at_once=False)
    sound = await new_node("sound", cost=3)
    await requester.put("m")
    demand("m")
    await until(lambda: broken.keeper.started)
    broken.keeper.answer = Cannot("too small")
    broken.keeper.move(broken.keeper.of("m")[0], "crashed", "no room", unfit=True)
    await requester.count(1, 4.0)
    assert b"hello" in requester.answers[0].payload
    assert len(sound.keeper.started) == 1


async def test_a_frozen_node_that_wakes_lets_its_held_request_go(
    new_node: Any, requester: Any, demand: Any, until: Any
) -> None:
    node = await new_node("n1", at_once=False)
    await requester.put("m")
    calls = demand("m")
    await until(lambda: node.keeper.started)
    calls.cancel()
    node.frozen = True
    node.serving.starts.cost = lambda model: None  # it asks for nothing while it is frozen
    await asyncio.sleep(2.3)  # longer than ack_wait: the server takes the message from it
    other = await new_node("n2")
    other.keeper.move(other.keeper.add("m"), "ready")
    await requester.count(1)
    node.frozen = False
    node.keeper.move(node.keeper.of("m")[0], "ready")
    await until(lambda: not len(node.serving.waiting))
    assert node.backend.asked == []
    assert len(requester.answers) == 1


async def test_a_held_request_of_a_server_that_restarted_is_not_served_twice(
    new_node: Any, requester: Any, demand: Any, until: Any, nats_server: Any
) -> None:
    node = await new_node("n1", at_once=False)
    await requester.put("m")
    demand("m")
    await until(lambda: node.keeper.started)
    session = node.bus.session
    await asyncio.to_thread(nats_server.restart)
    await until(lambda: node.bus.session > session and requester.bus.connected)
    await node.repair()
    await requester.put("m", request_id="r0")  # as a gateway does with what was not accepted
    node.keeper.move(node.keeper.of("m")[0], "ready")
    await requester.count(1)
    await until(lambda: not len(node.serving.waiting))
    await asyncio.sleep(0.2)
    assert len(node.backend.asked) == 1
    assert len(requester.answers) == 1


async def test_a_draining_node_gives_back_what_it_holds(new_node: Any, requester: Any, demand: Any, until: Any) -> None:
    node = await new_node("n1", at_once=False)
    await requester.put("m")
    demand("m")
    await until(lambda: node.keeper.started)
    node.serving.close()
    await node.inbox.stop()
    other = await new_node("n2")
    other.keeper.move(other.keeper.add("m"), "ready")
    await requester.count(1)
    assert len(other.backend.asked) == 1


async def test_interactive_goes_before_batch_for_a_cold_model(
    new_node: Any, requester: Any, demand: Any, until: Any
) -> None:
    node = await new_node("n1", at_once=False)
    await requester.put("m", lane="batch", request_id="batch")
    await requester.put("m", request_id="first")
    demand("m")
    await until(lambda: node.keeper.started)
    assert node.keeper.wanted[0] == ("m", "request first")
    node.keeper.move(node.keeper.of("m")[0], "ready")
    await requester.count(2)
    assert [answer.subject for answer in requester.answers] == ["answers.first", "answers.batch"]


async def test_a_model_that_is_not_of_this_node_is_left_alone(new_node: Any, requester: Any) -> None:
    node = await new_node("n1")
    await requester.put("other")
    requester.demand("other")
    await requester.bus.flush(2)
    await node.bus.flush(2)
    assert node.serving.appetite.wanted(0.0) == []


async def test_a_request_of_the_line_ends_at_its_deadline_with_the_reason(
    new_node: Any, requester: Any, demand: Any
) -> None:
    await new_node("n1", at_once=False)
    await requester.put("m", deadline_s=1.0)
    demand("m")
    [answer] = await requester.count(1)
    assert orjson.loads(answer.payload)["error"]["code"] in ("model_loading", "deadline_exceeded")


async def test_a_group_request_for_a_cold_model_needs_no_gateway(new_node: Any, requester: Any) -> None:
    await new_node("n1")
    answer = await requester.bus.request(
        requester.bus.names.infer("chat", "m"),
        b'{"messages": [{"role": "user", "content": "hi"}]}',
        timeout_s=10,
    )
    assert b"hello" in answer.payload


async def test_an_engine_that_dies_gives_a_plain_request_one_more_try(
    new_node: Any, requester: Any, until: Callable[..., Any]
) -> None:
    node = await new_node("n1")
    engine = node.keeper.add("m")
    node.keeper.move(engine, "ready")
    for times in (1, 2):
        node.backend.go.clear()
        node.backend.arrived.clear()
        if times == 1:
            await requester.put("m")
        await node.backend.arrived.wait()
        node.backend.cut()
        node.keeper.move(engine, "crashed", "signal SIGKILL")
        node.keeper.move(engine, "starting")
        node.keeper.move(engine, "ready")
    [answer] = await requester.count(1)
    assert orjson.loads(answer.payload)["error"]["code"] == "request_kills_engine"
    assert len(node.backend.asked) == 2


async def test_a_connection_that_breaks_alone_is_no_death(new_node: Any, requester: Any) -> None:
    node = await new_node("n1")
    node.keeper.move(node.keeper.add("m"), "ready")
    node.backend.go.clear()
    await requester.put("m")
    await node.backend.arrived.wait()
    node.backend.cut()
    [answer] = await requester.count(1)
    assert orjson.loads(answer.payload)["error"]["code"] == "engine_failed"


async def test_two_suspects_never_share_an_engine(new_node: Any, requester: Any, until: Callable[..., Any]) -> None:
    node = await new_node("n1", slots=4)
    node.keeper.move(node.keeper.add("m"), "ready")
    node.backend.go.clear()
    await requester.put("m", deaths=1)
    await requester.put("m", deaths=1)
    await requester.put("m")
    await until(lambda: len(node.backend.asked) == 2)
    assert node.serving.active == 2
    node.backend.go.set()
    await requester.count(3)
