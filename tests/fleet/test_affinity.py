"""A conversation stays with the engine that holds it in its cache, on a whole fleet with the real model."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.engine]

TURNS = 5


def metric(fleet: Any, name: str) -> float:
    with urllib.request.urlopen(f"{fleet.url}/metrics") as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"puna_gateway_{name} "))


async def test_the_turns_of_a_conversation_come_out_of_the_cache_of_one_engine(make_fleet) -> None:
    fleet = make_fleet("--workers", "2", "--slots", "2")
    messages: list[dict[str, str]] = [{"role": "system", "content": "You answer in one short sentence. " * 10}]
    nodes = []
    async with fleet.client(timeout=90) as client:
        for turn in range(TURNS):
            messages.append({"role": "user", "content": f"Tell me something about the number {turn}."})
            raw = await client.chat.completions.with_raw_response.create(
                model=fleet.model, messages=messages, max_tokens=12, temperature=0
            )
            nodes.append(raw.headers["x-puna-node"])
            answer = json.loads(raw.content)
            messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    assert len(set(nodes)) == 1
    assert metric(fleet, 'affinity_total{result="accepted"}') == TURNS - 1
    assert metric(fleet, 'affinity_total{result="stale"}') == 0
    assert metric(fleet, "affinity_cached_tokens_total") > 100 * (TURNS - 1)
