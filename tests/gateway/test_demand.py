"""When a model is asked for beyond its line."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.demand import Demands, Supply, Waiting, decide
from schemas.demand import DEMAND_EVERY_S, Demand

AFTER_S = 5.0
NOTHING = Supply()
counts = st.integers(0, 50)
supplies = st.builds(Supply, engines=st.integers(0, 5), free=counts, coming=counts)
waits = st.builds(Waiting, counts, st.floats(0, 100))


@pytest.mark.parametrize(
    ("waiting", "oldest_s", "supply", "kind"),
    [
        (0, 0.0, NOTHING, None),
        (1, 0.0, NOTHING, "cold"),
        (200, 60.0, NOTHING, "cold"),
        (9, 4.9, Supply(engines=1), None),
        (1, 5.0, Supply(engines=1), "spill"),
        (4, 9.0, Supply(engines=1, free=4), None),
        (5, 9.0, Supply(engines=1, free=4), "spill"),
        (4, 9.0, Supply(engines=2, free=1, coming=3), None),
        (5, 9.0, Supply(engines=2, free=1, coming=3), "spill"),
        (1, 9.0, Supply(engines=1, coming=4), None),
    ],
)
def test_what_waits_and_what_there_is_decide(waiting, oldest_s, supply, kind) -> None:
    demand = decide(Waiting(waiting, oldest_s), supply, AFTER_S)
    assert (demand.kind if demand else None) == kind
    if demand is not None:
        assert (demand.waiting, demand.oldest_s) == (waiting, oldest_s)


@given(waits, supplies)
def test_more_slots_never_ask_for_more(waiting: Waiting, supply: Supply) -> None:
    more = Supply(supply.engines + 1, supply.free + 1, supply.coming + 1)
    demand, after = decide(waiting, supply, AFTER_S), decide(waiting, more, AFTER_S)
    assert after is None or (demand is not None and after.kind == "spill")


@given(st.lists(st.tuples(st.floats(0, 0.7), st.booleans(), waits, supplies), max_size=60))
def test_never_more_than_one_message_a_model_a_second(steps: list[tuple[float, bool, Waiting, Supply]]) -> None:
    now, sent = 0.0, list[float]()

    def send(_: str, __: Demand) -> bool:
        sent.append(now)
        return True

    demands = Demands(AFTER_S, send)
    for step_s, arrives, waiting, supply in steps:
        now += step_s
        if arrives:
            demands.arrived("m", supply, now)
        else:
            demands.tick({"m": waiting}, lambda _, supply=supply: supply, now)
    assert all(later - earlier >= DEMAND_EVERY_S for earlier, later in pairwise(sent))


def test_what_could_not_be_sent_is_sent_with_the_next_chance() -> None:
    tried: list[str] = []
    demands = Demands(AFTER_S, lambda model, _: bool(tried.append(model)))
    demands.arrived("m", NOTHING, 0.0)
    demands.arrived("m", NOTHING, 0.1)
    assert tried == ["m", "m"]


# -- with a gateway ---------------------------------------------------------------------------------------------------
COLD: dict[str, Any] = {"engines": [], "offers": [{"model": "m", "cost": 1, "load_seconds": 3.0, "devices": ["cpu:0"]}]}


async def test_a_cold_model_is_listed_held_demanded_at_once_and_again_each_second(gateway, start_worker) -> None:
    worker = await start_worker(**COLD)
    await gateway.until_seen()
    page = (await gateway.http.get("/v1/models/m")).json()["puna"]
    assert (page["state"], page["nodes"], page["eta_s"]) == ("unloaded", ["n1"], 3.0)
    asked = [gateway.ask() for _ in range(3)]
    first = await asyncio.wait_for(worker.demanded.get(), 0.5)
    assert first == {"kind": "cold", "waiting": 1, "oldest_s": 0.0}
    again = await asyncio.wait_for(worker.demanded.get(), 3)
    assert (again["kind"], again["waiting"]) == ("cold", 3)
    assert 0 < again["oldest_s"] < 3
    worker.engines = None
    await worker.beat()
    for _ in asked:
        await (await worker.take()).answer_whole({})
    assert [(await one).status_code for one in asked] == [200] * 3


async def test_a_cold_model_that_nobody_starts_in_time_is_a_503_that_says_what_is_going_on(
    gateway, start_worker
) -> None:
    worker = await start_worker(**COLD | {"offers": [{"model": "m", "reason": "no room: e7 is busy"}]})
    await gateway.until_seen()
    response = await gateway.ask(headers={"x-puna-deadline-ms": "400"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
    assert "no room: e7 is busy" in response.json()["error"]["message"]
    assert response.json()["loading"]["state"] == "unloaded"
    assert int(response.headers["retry-after"]) > 0
    worker.offers[0]["never"] = True
    await worker.beat()
    await gateway.until(lambda page: page["puna"]["state"] == "unavailable", "/v1/models/m")
    response = await gateway.ask()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")


async def test_requests_that_wait_too_long_for_busy_engines_ask_for_one_more(start_gateway, start_worker) -> None:
    gateway = await start_gateway(spill_after_s=0.2)
    worker = await start_worker(more={"slots_busy": 4})
    await gateway.until_seen()
    asked = gateway.ask(headers={"x-puna-deadline-ms": "4000"})
    demand = await asyncio.wait_for(worker.demanded.get(), 3)
    assert (demand["kind"], demand["waiting"]) == ("spill", 1)
    assert demand["oldest_s"] >= 0.2
    await (await worker.take()).answer_whole({})
    await asked
