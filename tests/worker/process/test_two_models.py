"""A worker with two models and memory for one: what operators order, and what requests start by themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

MIB = 1 << 20
ENGINE = {"hold-mib": "70", "chunks": "5", "chunk-interval": "0.005"}
"""A fake engine that takes as much memory as its model's file asks for, and more: two of them are above the limit."""
LIMIT = 110 * MIB
CHAT = json.dumps({"stream": True, "messages": [{"role": "user", "content": "count"}]}).encode()

Ask = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def client(nats_server: Any) -> AsyncIterator[Client]:
    """A plain nats-py client."""
    connection = await nats.connect(nats_server.url)
    yield connection
    await connection.close()


@pytest.fixture
def ask(client: Client) -> Ask:
    """`await ask("load", {"model": "a"})` → the answer as JSON."""

    async def asked(verb: str, body: Any = None) -> dict[str, Any]:
        answer = await client.request(f"puna.node.n1.{verb}", json.dumps(body or {}).encode(), timeout=3)
        found = json.loads(answer.data)
        return found | ({"status": answer.headers["Nats-Service-Error-Code"]} if answer.headers else {})

    return asked


@pytest.fixture
def states(ask: Ask) -> Callable[[], Awaitable[dict[str, str]]]:
    """`await states()` → the state of each model's engine."""

    async def told() -> dict[str, str]:
        return {each["model"]: each["state"] for each in (await ask("status"))["engines"]}

    return told


@pytest.fixture
async def two(new_worker: Any, tmp_path: Path, write_model: Callable[..., Path]) -> Any:
    """Factory: `await two(b={"pinned": True})` → a worker with models `a` and `b`."""

    async def make(a: dict[str, Any] | None = None, b: dict[str, Any] | None = None, **more: Any) -> Any:
        paths = [write_model(tmp_path / f"{name}.gguf") for name in "ab"]
        models = [
            {"model": name, "path": str(path), "slots": 1, "context_tokens": 512, "flags": ENGINE} | (own or {})
            for name, path, own in zip("ab", paths, (a, b), strict=True)
        ]
        given = {"models": models, "memory_limit_bytes": LIMIT, "reserved_memory_bytes": 0}
        return await new_worker(**(given | more))

    return make


async def line_up(client: Client, model: str, inbox: str) -> None:
    """A plain client's request goes into the line."""
    headers = {"Puna-Reply": inbox, "Puna-Op": "chat", "Puna-Deadline": "30000"}
    await client.jetstream().publish(f"puna.queue.interactive.{model}", CHAT, headers=headers)


async def answers(client: Client, models: str) -> int:
    """Puts one request a letter into the line; how many are answered whole."""
    inboxes = [client.new_inbox() for _ in models]
    subscriptions = [await client.subscribe(inbox) for inbox in inboxes]
    for model, inbox in zip(models, inboxes, strict=True):
        await line_up(client, model, inbox)
    whole = 0
    for subscription in subscriptions:
        parts: list[bytes] = []
        while not parts or parts[-1]:
            message = await subscription.next_msg(timeout=30)
            assert not (message.headers or {}).get("Nats-Service-Error"), message.data
            parts.append(message.data)
        whole += b"".join(parts).endswith(b"data: [DONE]\n\n")
    return whole


async def test_the_first_that_fits_is_started_and_the_other_is_offered(two, ask, states, wait_until) -> None:
    worker = await two()
    assert await states() == {"a": "ready"}
    assert [line["model"] for line in worker.lines("model_left_cold")] == ["b"]
    await wait_until(lambda: worker.lines("engine_ready"))
    told = await ask("explain", {"model": "b"})
    (offer,) = told["offers"]
    assert offer["model"] == "b"
    assert offer["needed_bytes"] > 60 * MIB
    assert "b needs" in told["text"]
    beat = await ask("inventory")
    assert {each["model"] for each in beat["offers"]} == {"a", "b"}
    assert beat["shares"]["mem"]


async def test_requests_for_both_are_all_answered_and_each_model_has_its_turn(two, client) -> None:
    worker = await two()
    assert await asyncio.wait_for(answers(client, "abababbbaa"), 60) == 10
    assert 1 <= len(worker.lines("engine_removed")) <= 4, "as few switches as there are turns"


async def test_a_pinned_model_is_never_stopped_for_the_other(two, ask, client, states) -> None:
    await two(a={"pinned": True})
    assert await answers(client, "aa") == 2
    refused = await ask("load", {"model": "b"})
    assert refused["status"] == "503"
    assert "pinned" in refused["error"]["message"]
    assert await states() == {"a": "ready"}


async def test_an_operator_switches_models(two, ask, states, wait_until) -> None:
    await two()
    assert (await ask("unload", {"model": "a"}))["engines"] == ["engine-0"]

    async def gone() -> bool:
        return not await states()

    await wait_until(gone)
    loading = await ask("load", {"model": "b"})
    assert (loading["engine"], loading["loading"], loading["devices"]) == ("engine-0", True, ["cpu:0"])

    async def ready() -> bool:
        return await states() == {"b": "ready"}

    await wait_until(ready)
    again = await ask("load", {"model": "b"})
    assert (again["engine"], again["state"]) == ("engine-0", "ready")


REFUSALS: list[tuple[str, dict[str, Any], str, str, str | None]] = [
    ("load", {}, "400", "invalid_request", "model"),
    ("load", {"model": "nobody"}, "404", "model_not_found", "model"),
    ("load", {"model": "b", "devices": ["cuda:3"]}, "503", "unavailable", None),
    ("unload", {}, "400", "invalid_request", "model"),
    ("unload", {"model": "b"}, "404", "model_not_found", "model"),
    ("unload", {"engine": "engine-9"}, "404", "not_found", "engine"),
    ("restart", {"engine": "engine-9"}, "404", "not_found", "engine"),
    ("explain", {"model": "nobody"}, "404", "model_not_found", "model"),
    ("engine-get", {"engine": "engine-0", "path": "/etc"}, "400", "invalid_request", "path"),
]
"""Verb and body; status, code and field of the refusal."""


async def test_orders_that_cannot_be_are_refused_by_the_name_of_their_field(two: Any, ask: Ask) -> None:
    await two()
    for verb, body, status, code, param in REFUSALS:
        found = await ask(verb, body)
        assert (found["status"], found["error"]["code"], found["error"]["param"]) == (status, code, param), (verb, body)


async def test_an_engines_pages_can_be_read_through_control(two, client) -> None:
    await two()
    page = await client.request("puna.node.n1.engine-get", b'{"engine": "engine-0", "path": "/slots"}', timeout=3)
    assert [slot["id"] for slot in json.loads(page.data)] == [0]


async def test_a_log_is_followed_until_nobody_listens(two, ask, client) -> None:
    worker = await two()
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    await client.publish("puna.node.n1.logs", b'{"model": "a", "lines": 5, "follow": true}', reply=inbox)
    first = json.loads((await subscription.next_msg(timeout=3)).data)
    assert first["engine"] == "engine-0"
    assert first["lines"]
    batch = json.loads((await subscription.next_msg(timeout=3)).data)
    assert batch == {"lines": [], "left_out": 0}, "it says at least each second that it lives"
    await ask("restart", {"engine": "engine-0"})
    seen: list[str] = []
    while not any("listening on" in line for line in seen):
        seen += json.loads((await subscription.next_msg(timeout=10)).data)["lines"]
    await ask("unload", {"model": "a"})
    while (message := await subscription.next_msg(timeout=10)).data:
        continue
    assert message.data == b"", "an empty message is the end"
    assert not worker.lines("task_failed")


async def test_a_follower_that_left_is_let_go(two, client, ask, wait_until) -> None:
    await two()
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)
    for _ in range(32):
        await client.publish("puna.node.n1.logs", b'{"model": "a", "lines": 1, "follow": true}', reply=inbox)
    for _ in range(32):
        await subscription.next_msg(timeout=3)
    full = await ask("logs", {"model": "a", "follow": True})
    assert full["status"] == "503"
    await subscription.unsubscribe()

    async def free() -> bool:
        return "status" not in await ask("logs", {"model": "a", "lines": 1, "follow": True})

    await wait_until(free)


async def test_an_idle_engine_is_stopped_after_its_time(two, states, wait_until) -> None:
    await two(idle_ttl_s=1.5)

    async def gone() -> bool:
        return not await states()

    await wait_until(gone)


async def test_a_model_that_cannot_start_costs_the_other_nothing(two, client, states, ask, wait_until) -> None:
    worker = await two(b={"preload": False, "flags": {"die-at-start": True}}, memory_limit_bytes=400 * MIB)
    await line_up(client, "b", client.new_inbox())
    await wait_until(lambda: worker.lines("model_barred"))
    assert await answers(client, "aa") == 2
    (offer,) = (await ask("explain", {"model": "b"}))["offers"]
    assert offer["cost"] is None
    assert "tried again in" in offer["reason"]
