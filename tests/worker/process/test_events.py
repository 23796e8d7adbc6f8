"""What a worker tells of itself on `puna.event.<node>.<kind>`, and that it can be read back."""

from __future__ import annotations

import json
from typing import Any


async def kinds(requester: Any) -> list[str]:
    stream = requester.client.jetstream()
    found: list[str] = []
    for sequence in range(1, (await stream.stream_info("PUNA_EVENTS")).state.last_seq + 1):
        message = await stream.get_msg("PUNA_EVENTS", sequence)
        event = json.loads(message.data)
        assert message.subject == f"puna.event.n1.{event['kind']}"
        assert event["node"] == "n1"
        found.append(event["kind"])
    return found


async def test_the_life_of_a_node_and_its_engine_can_be_read_back(
    new_worker: Any, requester: Any, wait_until: Any
) -> None:
    worker = await new_worker()
    worker.engines()[0].kill()
    await wait_until(lambda: len(worker.lines("engine_ready")) == 2)
    worker.terminate()
    assert await worker.ended() == 0
    told = await kinds(requester)
    assert {"node_started", "node_draining"} <= set(told)
    engine = [kind for kind in told if kind.startswith("engine_")]
    first = engine.index("engine_ready")  # the very first start may come before the stream stands
    assert engine[first : first + 4] == ["engine_ready", "engine_crashed", "engine_starting", "engine_ready"]
    assert engine[-1] == "engine_stopped"
