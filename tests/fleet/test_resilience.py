"""What happens when something dies or freezes under a running fleet. Each test hurts a fleet of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

import openai
import psutil
import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.engine]


def question(fleet, tokens: int, **more: Any) -> dict[str, Any]:
    return {
        "model": fleet.model,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": tokens,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
    } | more


async def test_a_client_that_leaves_frees_its_slot_within_a_quarter_of_a_second(fleet, client, busy_slots) -> None:
    stream = await client.chat.completions.create(**question(fleet, 2000, stream=True))
    async for _ in stream:
        break
    await busy_slots(1)
    await stream.close()
    assert await busy_slots(0) < 0.25


async def test_a_gateway_killed_frees_its_slots_within_half_a_second(make_fleet, busy_slots) -> None:
    fleet = make_fleet("--slots", "2")
    async with fleet.client() as client:
        stream = await client.chat.completions.create(**question(fleet, 2000, stream=True))
        async for _ in stream:
            break
        await busy_slots(1, of=fleet)
        os.kill(fleet.facts["gateways"][0]["pid"], signal.SIGKILL)
        assert await busy_slots(0, of=fleet) < 0.5
        with contextlib.suppress(openai.APIError):
            await stream.close()


async def test_nothing_new_is_lost_to_a_frozen_worker(make_fleet) -> None:
    fleet = make_fleet("--workers", "2", "--slots", "2")
    frozen = psutil.Process(fleet.facts["workers"][0]["pid"])
    frozen.suspend()
    try:
        async with fleet.client(timeout=90) as client:
            asked = [client.chat.completions.create(**question(fleet, 8)) for _ in range(16)]
            answers = await asyncio.gather(*asked)
        assert all(answer.choices[0].message.content for answer in answers)
    finally:
        frozen.resume()


async def test_up_leaves_no_process_after_ctrl_c_or_a_kill(make_fleet) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        fleet = make_fleet("--slots", "1")
        left = fleet.processes()
        assert len(left) >= 4
        os.kill(fleet.process.pid, sign)
        fleet.process.wait(30)
        _, alive = psutil.wait_procs(left, timeout=10)
        assert alive == [], [process.cmdline() for process in alive]
