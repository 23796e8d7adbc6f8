"""A request is offered to an engine with much room, and stands in line where there is none."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.room import LEFT_ALONE_S, LOOKED_AT_LIMIT, SILENT_S, Room
from gateway.serving import Model, Serving
from schemas.node import Engine


def serving(node: str = "n1", *, draining: bool = False, **fields: Any) -> Serving:
    engine = {"engine": "e1", "model": "m", "devices": ["cuda:0"], "state": "ready", "slots_total": 4, "since": 0}
    return Serving(node, Engine.model_validate(engine | fields), draining)


def model(*servings: Serving) -> Model:
    return Model(model="m", created=0, servings=servings)


def asked(room: Room, one: Model, now: float = 0.0) -> str | None:
    """The node that is offered a request, which then runs there."""
    home = room.find(one, now)
    if home is not None:
        room.begun(home)
    return home.node if home is not None else None


def test_half_of_the_slots_must_be_free() -> None:
    assert asked(Room(), model(serving(slots_busy=2))) == "n1"
    assert asked(Room(), model(serving(slots_busy=3))) is None
    assert asked(Room(), model(serving(slots_total=1))) == "n1"
    assert asked(Room(), model(serving(slots_total=1, slots_busy=1))) is None


def test_what_was_sent_counts_before_a_heartbeat_tells_of_it() -> None:
    room, one = Room(), model(serving())
    assert [asked(room, one) for _ in range(4)] == ["n1", "n1", "n1", None]
    home = room.find(model(serving("n2")), 0.0)
    assert home is not None
    room.over(room.find(model(serving(slots_total=8)), 0.0) or home)
    assert asked(room, one) == "n1"


def test_engines_take_turns() -> None:
    room, one = Room(), model(*(serving(f"n{number}", slots_total=8) for number in range(3)))
    assert sorted(asked(room, one) or "" for _ in range(6)) == ["n0", "n0", "n1", "n1", "n2", "n2"]


def test_gpus_come_before_processors() -> None:
    room, both = Room(), model(serving("slow", devices=["cpu:0"]), serving("fast", slots_total=1))
    assert [asked(room, both) for _ in range(2)] == ["fast", None]
    assert asked(room, model(serving("slow", devices=["cpu:0"]))) == "slow"


def test_who_drains_yields_or_is_not_ready_is_not_asked() -> None:
    others = [serving(draining=True), serving(yielding=True), serving(state="starting"), serving(state="crashed")]
    assert asked(Room(), model(*others)) is None
    assert asked(Room(), model()) is None


def test_who_did_not_take_an_offer_is_left_alone_for_a_while() -> None:
    for silent, time_s in ((False, LEFT_ALONE_S), (True, SILENT_S)):
        room, one = Room(), model(serving())
        home = room.find(one, 0.0)
        assert home is not None
        room.failed(home, 0.0, silent=silent)
        assert asked(room, one, time_s - 0.01) is None
        assert asked(room, one, time_s) == "n1"


def test_few_engines_are_looked_at_however_many_there_are() -> None:
    full = [serving(f"n{number}", slots_busy=4) for number in range(10 * LOOKED_AT_LIMIT)]
    room, one = Room(), model(*full, serving("free"))
    found = {asked(room, one) for _ in range(len(full) + 1)}
    assert "free" in found and None in found


# -- with a worker -----------------------------------------------------------------------------------------------------
async def test_a_request_goes_straight_to_a_node_with_room_and_not_through_the_line(
    start_gateway, start_worker
) -> None:
    gateway = await start_gateway(direct=True, affinity_wait_ms=1000)
    worker = await start_worker()
    await gateway.until_seen()
    answer = gateway.ask()
    job = await asyncio.wait_for(worker.asked.get(), 3)
    assert job.message.subject == "puna.node.n1.infer.chat.m"
    await job.answer_whole({"n": 1})
    assert (await answer).json() == {"n": 1}
    assert await worker.line_length() == 0
    text = (await gateway.http.get("/metrics")).text
    assert 'puna_gateway_direct_total{result="accepted"} 1.0' in text


async def test_a_refused_offer_stands_in_line_and_the_node_is_left_alone(start_gateway, start_worker) -> None:
    gateway = await start_gateway(direct=True, affinity_wait_ms=1000)
    worker = await start_worker()
    await gateway.until_seen()
    first = gateway.ask()
    await (await asyncio.wait_for(worker.asked.get(), 3)).refuse("unavailable")
    job = await worker.take()
    assert job.epoch == 2
    second = gateway.ask()
    other = await worker.take()
    assert other.epoch == 1 and worker.asked.empty()
    for each in (job, other):
        await each.answer_whole({})
    assert [(await each).status_code for each in (first, second)] == [200, 200]


async def test_a_silent_node_costs_the_wait_for_its_accept_and_nothing_more(start_gateway, start_worker) -> None:
    gateway = await start_gateway(direct=True, affinity_wait_ms=20)
    worker = await start_worker()
    await gateway.until_seen()
    answer = gateway.ask()
    late = await asyncio.wait_for(worker.asked.get(), 3)
    job = await worker.take()
    assert job.epoch == 2
    assert await late.accept() == b"gone"
    await job.answer_whole({"n": 2})
    assert (await answer).json() == {"n": 2}


async def test_the_batch_lane_stands_in_line(start_gateway, start_worker) -> None:
    gateway = await start_gateway(direct=True)
    worker = await start_worker()
    await gateway.until_seen()
    answer = gateway.ask(headers={"X-Puna-Lane": "batch"})
    await (await worker.take("batch")).answer_whole({})
    assert (await answer).status_code == 200
    assert worker.asked.empty()
