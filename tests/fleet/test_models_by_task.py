"""Models come, are served and go by a line that an operator types: a plain NATS client, a Hub, a real engine."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import openai
import pytest
from nats.js.errors import KeyNotFoundError

FAKES = Path(__file__).parents[1] / "fakes"
REPOSITORY = "acme/small-GGUF"


@pytest.fixture
def hub(tmp_path: Path, small_model: Path) -> Iterator[str]:
    """A Hub that has the small model; its address."""
    revision = tmp_path / "hub" / REPOSITORY / "main"
    revision.mkdir(parents=True)
    os.link(small_model, revision / "small-Q4_K_M.gguf") if os.stat(small_model).st_dev == os.stat(
        revision
    ).st_dev else (revision / "small-Q4_K_M.gguf").write_bytes(small_model.read_bytes())
    command = [sys.executable, str(FAKES / "hub.py"), "--root", str(tmp_path / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["hub"]
        process.kill()


@pytest.fixture
async def plain(hub: str, make_fleet: Callable[..., Any], monkeypatch: Any) -> AsyncIterator[tuple[Any, Any]]:
    """A fleet whose Hub this is, and a NATS client that knows nothing of Puna."""
    monkeypatch.setenv("HF_ENDPOINT", hub)
    fleet = make_fleet()
    client = await nats.connect(fleet.nats)
    yield fleet, client
    await client.close()


async def _states(client: Any, task: str) -> AsyncIterator[dict[str, Any]]:
    """Each record of a task, as it is written, until it has ended."""
    bucket = await client.jetstream().key_value("puna_tasks")
    last = 0
    while True:
        try:
            entry = await bucket.get(task)
        except KeyNotFoundError:
            await asyncio.sleep(0.02)
            continue
        if entry.revision != last:
            last, record = entry.revision, json.loads(entry.value or b"{}")
            yield record
            if record["state"] in ("done", "failed", "dead", "cancelled"):
                return
        await asyncio.sleep(0.02)


async def test_a_typed_line_fetches_a_model_from_the_hub_and_a_real_engine_serves_it(plain: tuple[Any, Any]) -> None:
    fleet, client = plain
    body = {"id": "t-1", "model": "mine", "source": f"hf://{REPOSITORY}:Q4_K_M"}
    await client.publish("puna.task.download", json.dumps(body).encode())
    async with asyncio.timeout(60):
        records = [record async for record in _states(client, "t-1")]
    assert records[-1]["state"] == "done", records[-1]
    async with fleet.client() as sdk:
        answer = await sdk.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": "Hi"}], max_tokens=8, temperature=0
        )
        assert answer.choices[0].message.content
        await client.publish("puna.task.delete", b'{"id": "t-2", "model": "mine"}')
        async with asyncio.timeout(30):
            ended = [record async for record in _states(client, "t-2")][-1]
            assert ended["state"] == "done", ended
            await _gone(sdk)
    assert not list((fleet.state_dir).rglob("blobs/sha256-*"))


async def _gone(sdk: openai.AsyncOpenAI) -> None:
    while True:
        try:
            await sdk.models.retrieve("mine")
        except openai.NotFoundError:
            return
        await asyncio.sleep(0.1)
