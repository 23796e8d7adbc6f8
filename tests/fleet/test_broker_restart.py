"""nats-server killed and started again in the middle of streams: every byte once and in order, or an explicit error.

The engine is the fake one, whose text is numbered, so that a lost, doubled or swapped byte is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
MODEL = "counting"
CHUNKS = 60
WHOLE = "".join(f"t{number} " for number in range(CHUNKS))
STREAMS = 20
ROUNDS = 10


class Processes:
    """Gateways and workers of one test, started straight, without `puna up`."""

    def __init__(self, folder: Path, nats: str) -> None:
        self.folder = folder
        self.nats = nats
        self.started: list[subprocess.Popen[bytes]] = []

    async def run(self, name: str, *arguments: str) -> dict[str, Any]:
        """The facts that the process prints once it is up."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments, "--nats", self.nats],
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                cwd=self.folder,
            )
        self.started.append(process)
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, (self.folder / f"{name}.log").read_text()
        return json.loads(line)

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
            process.wait()


@pytest.fixture
async def gateway_url(nats_server: Any, tmp_path: Path, write_model: Callable[..., Path]) -> AsyncIterator[str]:
    """A gateway with one worker that counts to 60 in three seconds, on 24 slots."""
    model = write_model(tmp_path / "model.gguf")
    config = tmp_path / "worker.yaml"
    flags = {"chunks": str(CHUNKS), "chunk-interval": "0.05"}
    served = {"model": MODEL, "path": str(model), "slots": STREAMS + 4, "flags": flags}
    config.write_text(json.dumps({"models": [served], "engine": {"path": str(ENGINE)}}))
    processes = Processes(tmp_path, nats_server.url)
    worker = ("worker", "--config", str(config), "--node", "w1", "--http", "127.0.0.1:0")
    await processes.run("worker", *worker, "--state-dir", str(tmp_path / "state"))
    facts = await processes.run("gateway", "gateway", "--listen", "127.0.0.1:0")
    yield facts["url"]
    processes.end()


async def count(client: openai.AsyncOpenAI, started: Callable[[], None] | None = None) -> str | None:
    """The text of one stream; None if it ended with an explicit error."""
    text = ""
    try:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "count"}], stream=True
        )
        async for chunk in stream:
            for choice in chunk.choices:
                text += choice.delta.content or ""
            if started and text:
                started()
    except openai.APIError:
        assert WHOLE.startswith(text), f"wrong bytes before the error: {text!r}"
        return None
    return text


async def one_round(client: openai.AsyncOpenAI, server: Any) -> dict[str, float]:
    """Twenty streams, all of them under way; kill; start; the first new answer; then the end of the twenty."""
    under_way = [asyncio.Event() for _ in range(STREAMS)]
    streams = [asyncio.create_task(count(client, event.set)) for event in under_way]
    await asyncio.gather(*(asyncio.wait_for(event.wait(), 30) for event in under_way))
    server.kill()
    server.start()
    back = time.monotonic()
    first = asyncio.Event()
    new = asyncio.create_task(count(client, first.set))
    await asyncio.wait_for(first.wait(), 30)
    serves_s = time.monotonic() - back
    texts = await asyncio.gather(*streams)
    assert [text for text in texts if text not in (None, WHOLE)] == []
    assert await new == WHOLE
    return {"serves_s": round(serves_s, 3), "whole": sum(text is not None for text in texts)}


async def test_no_byte_is_lost_doubled_or_swapped_over_ten_kills_of_the_broker(gateway_url, nats_server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        assert await count(client) == WHOLE
        rounds = [await one_round(client, nats_server) for _ in range(ROUNDS)]
    print(json.dumps(rounds))
    assert statistics.median(one["whole"] for one in rounds) == STREAMS
    assert max(one["serves_s"] for one in rounds) < 1.0
