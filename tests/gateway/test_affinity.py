"""The next turn of a conversation goes to the engine that holds it in its cache, and never waits for that."""

from __future__ import annotations

import asyncio
import json
import time
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.affinity import STALE_BELOW, TTL_S, Affinity, Chain, conversation_of
from gateway.fleet import Fleet, Sighting
from gateway.offering import tokens_of
from schemas.node import Heartbeat
from schemas.reply import End

ASK = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]
SAID = {"role": "assistant", "content": "hello"}
NEXT = [*ASK, SAID, {"role": "user", "content": "more"}]


def chain(messages: list[dict[str, Any]], *, tenant: str | None = None, **fields: Any) -> Chain:
    found = conversation_of("chat", {"model": "m", "messages": messages} | fields, size_bytes=100, tenant=tenant)
    assert found is not None
    assert found.answered == any(message["role"] == "assistant" for message in messages)
    return found.chain


def fleet(*, draining: bool = False, **engine: Any) -> Fleet:
    fields = {"engine": "e1", "model": "m", "devices": [], "state": "ready", "slots_total": 2, "since": 0, "pid": 7}
    beat = Heartbeat.model_validate(
        {
            "node": "n1",
            "boot_id": "b",
            "sequence": 1,
            "version": "1",
            "started_at": 0,
            "draining": draining,
            "engines": [fields | engine],
        }
    )
    return Fleet(MappingProxyType({"n1": Sighting(beat, 1, 0.0)}), whole=True)


def knowing(*messages: list[dict[str, Any]], **limits: int) -> Affinity:
    known = Affinity(**limits)
    for each in messages:
        known.learn(chain(each), "m", "n1", "e1", 100, fleet(), 0.0)
    return known


def test_a_turn_finds_the_engine_of_the_turn_before() -> None:
    home = knowing(ASK).find(chain(NEXT), "m", fleet(), 1.0)
    assert home is not None
    assert (home.node, home.engine, home.prompt_tokens) == ("n1", "e1", 100)


def test_the_longest_known_beginning_counts() -> None:
    known = Affinity()
    known.learn(chain(ASK), "m", "n1", "e1", 10, fleet(), 0.0)
    known.learn(chain(NEXT), "m", "n1", "e1", 30, fleet(), 0.0)
    later = [*NEXT, SAID, {"role": "user", "content": "and more"}]
    home = known.find(chain(later), "m", fleet(), 1.0)
    assert home is not None
    assert home.prompt_tokens == 30


def test_a_tools_answer_follows_a_turn_as_a_users_does() -> None:
    call = [*ASK, {"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "42"}]
    assert knowing(ASK).find(chain(call), "m", fleet(), 1.0) is not None


def test_the_same_question_again_is_no_next_turn() -> None:
    assert knowing(ASK).find(chain(ASK), "m", fleet(), 1.0) is None


@pytest.mark.parametrize(
    "other", [{"tenant": "b"}, {"model": "other"}, {"tools": [{"type": "function"}]}, {"system": "x"}]
)
def test_what_stands_before_the_messages_is_part_of_the_conversation(other) -> None:
    assert knowing(ASK).find(chain(NEXT, **other), "m", fleet(), 1.0) is None


def test_the_order_of_a_messages_fields_does_not_matter() -> None:
    turned = [dict(reversed(list(message.items()))) for message in NEXT]
    assert chain(turned) == chain(NEXT)


@given(st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=12), st.integers(0, 12))
def test_each_answer_is_looked_up_by_what_stood_before_it(roles: list[str], cut: int) -> None:
    messages = [{"role": role, "content": str(n)} for n, role in enumerate(roles)]
    before = chain(messages[:cut]).whole
    answered = cut < len(roles) and roles[cut] == "assistant"
    assert (before in chain(messages).earlier) == answered


@pytest.mark.parametrize(
    ("view", "kept"),
    [
        (fleet(draining=True), True),
        (fleet(yielding=True), True),
        (fleet(state="stopping"), True),
        (fleet(state="crashed"), False),
        (fleet(pid=8), False),
        (fleet(engine="e2"), False),
        (fleet(model="other"), False),
        (Fleet(whole=True), False),
    ],
)
def test_an_engine_that_cannot_be_asked_is_not_asked_and_one_that_is_gone_is_forgotten(view, kept) -> None:
    known = knowing(ASK)
    assert known.find(chain(NEXT), "m", view, 1.0) is None
    assert len(known) == kept


def test_what_is_known_ends_with_its_time_and_the_oldest_goes_first() -> None:
    assert knowing(ASK).find(chain(NEXT), "m", fleet(), TTL_S + 1) is None
    others = [[{"role": "user", "content": str(n)}] for n in range(5)]
    assert len(knowing(*others, entries_limit=3)) == 3
    assert knowing(ASK, *others, entries_limit=3).find(chain(NEXT), "m", fleet(), 1.0) is None
    assert len(knowing(*others, bytes_limit=1024)) == 2


def test_an_engine_that_had_far_less_in_its_cache_is_forgotten() -> None:
    known = knowing(ASK)
    home = known.find(chain(NEXT), "m", fleet(), 1.0)
    assert home is not None
    assert known.check(home, int(100 * STALE_BELOW))
    assert len(known) == 1
    assert not known.check(home, 3)
    assert len(known) == 0


def test_tokens_are_read_from_timings_or_usage_whatever_stands_there() -> None:
    assert tokens_of(End(timings={"cache_n": 90, "prompt_n": 10})) == (90, 100)
    assert tokens_of(End(usage={"prompt_tokens": 50})) == (None, 50)
    assert tokens_of(End(timings={"cache_n": "x", "prompt_n": -1}, usage={"input_tokens": True})) == (None, 0)


def test_a_chain_of_a_10_kb_chat_costs_little() -> None:
    messages = [{"role": ("user", "assistant")[n % 2], "content": "x" * 500} for n in range(20)]
    fields = {"model": "m", "messages": messages}
    costs = []
    for _ in range(50):
        started = time.perf_counter()
        found = conversation_of("chat", fields, size_bytes=10_000, tenant=None)
        assert found is not None
        assert len(found.chain.earlier) == 10
        costs.append(time.perf_counter() - started)
    assert min(costs) < 100e-6


def test_no_conversation_is_seen_of_what_is_no_conversation_or_too_large() -> None:
    assert conversation_of("embeddings", {"model": "m", "input": "x"}, size_bytes=10, tenant=None) is None
    assert conversation_of("chat", {"model": "m", "messages": ASK}, size_bytes=2 << 20, tenant=None) is None
    assert conversation_of("chat", {"model": "m", "messages": ASK * 600}, size_bytes=10, tenant=None) is None


# -- with a gateway ---------------------------------------------------------------------------------------------------
END = {"timings": {"cache_n": 0, "prompt_n": 100}}


async def first_turn(gateway: Any, worker: Any) -> None:
    asked = gateway.ask(messages=ASK)
    await (await worker.take()).answer_whole({}, **END)
    assert (await asked).status_code == 200


async def count(gateway: Any, result: str) -> float:
    text = (await gateway.http.get("/metrics")).text
    name = f'puna_gateway_affinity_total{{result="{result}"}} '
    return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


async def test_the_next_turn_is_offered_to_its_engine_and_answered_from_there(gateway, worker) -> None:
    await first_turn(gateway, worker)
    asked = gateway.ask(messages=NEXT)
    job = await asyncio.wait_for(worker.asked.get(), 3)
    assert job.message.subject == "puna.node.n1.infer.chat.m"
    assert (job.headers["Puna-Engine"], job.epoch, job.headers["Puna-Frames"]) == ("e1", 1, "1")
    await job.answer_whole({"n": 1}, timings={"cache_n": 95, "prompt_n": 20})
    assert (await asked).json() == {"n": 1}
    assert await worker.line_length() == 0
    third = gateway.ask(messages=[*NEXT, SAID, ASK[1]])
    await (await asyncio.wait_for(worker.asked.get(), 3)).answer_whole(
        {"n": 2}, timings={"cache_n": 1, "prompt_n": 140}
    )
    assert (await third).status_code == 200


async def test_a_busy_node_costs_a_round_trip_and_the_line_takes_the_turn(start_gateway, start_worker) -> None:
    gateway = await start_gateway(affinity_wait_ms=1000)
    worker = await start_worker()
    await gateway.until_seen()
    await first_turn(gateway, worker)
    started = time.monotonic()
    asked = gateway.ask(messages=NEXT)
    await (await asyncio.wait_for(worker.asked.get(), 3)).refuse("unavailable")
    job = await worker.take()
    assert time.monotonic() - started < 0.9
    assert job.epoch == 2
    assert "Puna-Engine" not in job.headers
    await job.answer_whole({})
    assert (await asked).status_code == 200
    assert await count(gateway, "fell_back") == 1


async def test_who_does_not_accept_in_time_is_passed_by_and_hears_gone_later(gateway, worker) -> None:
    await first_turn(gateway, worker)
    asked = gateway.ask(messages=NEXT)
    late = await asyncio.wait_for(worker.asked.get(), 3)
    job = await worker.take()
    cancelled = await asyncio.wait_for(worker.cancels.get(), 3)
    assert (cancelled["request"], cancelled["epoch"]) == (late.headers["Puna-Request"], 1)
    assert await late.accept() == b"gone"
    await job.answer_whole({})
    assert (await asked).status_code == 200


async def test_a_node_that_does_not_listen_is_known_at_once(start_gateway, start_worker) -> None:
    gateway = await start_gateway(affinity_wait_ms=1000)
    worker = await start_worker(named=False)
    await gateway.until_seen()
    await first_turn(gateway, worker)
    started = time.monotonic()
    asked = gateway.ask(messages=NEXT)
    job = await worker.take()
    assert time.monotonic() - started < 0.9
    await job.answer_whole({})
    assert (await asked).status_code == 200


async def test_an_offer_is_no_try_and_a_worker_lost_behind_it_is(start_gateway, start_worker) -> None:
    gateway = await start_gateway(tries=2)
    worker = await start_worker()
    await gateway.until_seen()
    await first_turn(gateway, worker)
    asked = gateway.ask(messages=NEXT)
    await (await asyncio.wait_for(worker.asked.get(), 3)).refuse("unavailable")
    job = await worker.take()
    await job.accept()
    await job.refuse("engine_failed", 502)
    job = await worker.take()
    assert job.epoch == 3
    await job.answer_whole({})
    assert (await asked).status_code == 200


async def test_affinity_can_be_switched_off(start_gateway, start_worker) -> None:
    gateway = await start_gateway(affinity=False)
    worker = await start_worker()
    await gateway.until_seen()
    await first_turn(gateway, worker)
    asked = gateway.ask(messages=NEXT)
    await (await worker.take()).answer_whole({})
    await asked
    assert worker.asked.empty()


async def test_a_client_that_leaves_while_its_turn_is_offered_is_taken_back(start_gateway, start_worker) -> None:
    gateway = await start_gateway(affinity_wait_ms=1000)
    worker = await start_worker()
    await gateway.until_seen()
    await first_turn(gateway, worker)
    asked = gateway.ask(messages=NEXT)
    job = await asyncio.wait_for(worker.asked.get(), 3)
    asked.cancel()
    cancelled = await asyncio.wait_for(worker.cancels.get(), 3)
    assert cancelled["request"] == job.headers["Puna-Request"]
    assert json.loads(job.message.data)["model"] == "m"
