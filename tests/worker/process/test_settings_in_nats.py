"""A worker that is started where settings are kept for its node."""

from __future__ import annotations

import json
from typing import Any

import nats


async def test_settings_that_are_stored_for_a_node_are_in_force_after_its_start(
    new_worker: Any, nats_server: Any
) -> None:
    client = await nats.connect(nats_server.url)
    try:
        bucket = await client.jetstream().create_key_value(bucket="puna_config", history=8, max_bytes=4 << 20)
        await bucket.put("n1", b'{"slots": 7, "downloads": {"read_timeout_s": "45s"}}')
        worker = await new_worker()
        found = json.loads((await client.request("puna.node.n1.config", b"", timeout=5)).data)["config"]
    finally:
        await client.close()
    assert (found["slots"], found["downloads"]["read_timeout_s"]) == (7, 45)
    assert worker.lines("stored_settings")
