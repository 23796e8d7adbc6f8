"""A model on the disk of two nodes, one of which could never run it: its requests are for the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

MIB = 1 << 20
MODEL = "m"
CHAT = json.dumps({"stream": True, "messages": [{"role": "user", "content": "count"}]}).encode()
REQUESTS = 8


@pytest.fixture
async def client(nats_server: Any) -> AsyncIterator[Client]:
    connection = await nats.connect(nats_server.url)
    yield connection
    await connection.close()


async def offers(client: Client, node: str) -> list[dict[str, Any]]:
    answer = await client.request(f"puna.node.{node}.explain", json.dumps({"model": MODEL}).encode(), timeout=3)
    return json.loads(answer.data)["offers"]


async def test_a_node_that_can_never_run_a_model_is_not_asked_for_it(
    new_worker: Any, client: Client, tmp_path: Path, write_model: Callable[..., Path], wait_until: Any
) -> None:
    own = {"model": MODEL, "path": str(write_model(tmp_path / "m.gguf")), "slots": 1, "context_tokens": 512}
    own |= {"preload": False, "flags": {"chunks": "3"}}
    small = await new_worker("n1", ready=False, models=[own], memory_limit_bytes=10 * MIB, memory_check="refuse")

    async def never() -> bool:
        found = await offers(client, "n1")
        return bool(found) and found[0]["never"]

    await wait_until(never)
    large = await new_worker("n2", ready=False, models=[own])
    inboxes = [client.new_inbox() for _ in range(REQUESTS)]
    heard = [await client.subscribe(inbox) for inbox in inboxes]
    headers = {"Puna-Op": "chat", "Puna-Deadline": "30000"}
    for inbox in inboxes:
        queue = f"puna.queue.interactive.{MODEL}"
        await client.jetstream().publish(queue, CHAT, headers=headers | {"Puna-Reply": inbox})
    for each in heard:
        parts = [await each.next_msg(timeout=30)]
        while parts[-1].data:
            parts.append(await each.next_msg(timeout=30))
            assert not (parts[-1].headers or {}).get("Nats-Service-Error"), parts[-1].data
    assert len(large.lines("request")) == REQUESTS
    for event in ("request", "engine_wanted", "engine_placed", "given_back", "engine_crashed"):
        assert small.lines(event) == [], "it was not asked at all"
    assert (await offers(client, "n1"))[0]["never"]
