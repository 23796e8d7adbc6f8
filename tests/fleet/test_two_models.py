"""Two models on one machine with memory for one: real engines, a real gateway, and clients that do not wait."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import openai
import psutil
import pytest

pytestmark = [pytest.mark.fleet, pytest.mark.engine]

ROOT = Path(__file__).parents[2]
MODELS = ("red", "blue")
SLOTS = 2
LIMIT_BYTES = 330 << 20
"""One engine of the small model takes some 310 MiB with this context and these slots."""
REQUESTS = int(os.environ.get("PUNA_TEST_REQUESTS", "16"))


@dataclass
class Pair:
    """A gateway, a worker with both models, and what was told on the bus."""

    url: str
    worker: int
    switches: list[dict[str, Any]] = field(default_factory=list)

    def loaded(self) -> set[str]:
        """Models that a process below the worker was started for."""
        lines = [each.cmdline() for each in psutil.Process(self.worker).children(recursive=True)]
        return {line[line.index("--alias") + 1] for line in lines if "--alias" in line}


async def _announced(name: str, folder: Path, arguments: list[str]) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
    with (folder / f"{name}.log").open("wb") as log:
        argv = [sys.executable, "-m", *arguments]
        environ |= {"PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, cwd=folder, env=environ)
    assert process.stdout is not None
    line = await asyncio.to_thread(process.stdout.readline)
    assert line, (folder / f"{name}.log").read_text()
    return process, json.loads(line)


def _config(folder: Path, small_model: Path) -> Path:
    models: list[dict[str, Any]] = []
    for name in MODELS:
        (folder / f"{name}.gguf").symlink_to(small_model)
        path = str(folder / f"{name}.gguf")
        models.append({"model": name, "path": path, "slots": SLOTS, "context_tokens": 1024, "threads": 1})
    told = {"node": "pair", "models": models, "memory_limit_bytes": LIMIT_BYTES, "state_dir": str(folder / "state")}
    told |= {"reserved_memory_bytes": 0, "engine": {"orphan_grace_s": 0}, "http": {"listen": "127.0.0.1:0"}}
    (folder / "worker.json").write_text(json.dumps(told))
    return folder / "worker.json"


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, small_model: Path, fake: Callable[[str], Any]
) -> Iterator[tuple[Pair, str]]:
    """One worker and one gateway for all tests here, and the address of their bus."""
    folder = tmp_path_factory.mktemp("pair")
    server = fake("natsd").NatsServer(folder / "nats", "")
    server.start()
    bus = ["--nats", server.url]

    async def start() -> list[tuple[subprocess.Popen[bytes], dict[str, Any]]]:
        worker = ["worker", "--config", str(_config(folder, small_model)), *bus]
        gateway = ["gateway", "--listen", "127.0.0.1:0", *bus]
        return [await _announced("worker", folder, worker), await _announced("gateway", folder, gateway)]

    (worker, _), (gateway, facts) = asyncio.run(start())
    yield Pair(facts["url"], worker.pid), server.url
    for process in (gateway, worker):
        process.terminate()
        process.wait(30)
    server.kill()


@pytest.fixture
async def pair(shared: tuple[Pair, str]) -> AsyncIterator[Pair]:
    """What is told on the bus during the test is in its `switches`."""
    made, url = shared
    made.switches.clear()
    bus = await nats.connect(url)

    async def told(message: Any) -> None:
        made.switches.append(json.loads(message.data))

    await bus.subscribe("puna.event.pair.model_switched", cb=told)
    yield made
    await bus.close()


@pytest.fixture
async def ask(pair: Pair) -> AsyncIterator[Callable[[str, int], Awaitable[str]]]:
    """`await ask("red", 3)` → the answer to the third question."""
    client = openai.AsyncOpenAI(base_url=f"{pair.url}/v1", api_key="none", max_retries=0, timeout=300)

    async def asked(model: str, number: int) -> str:
        messages: Any = [{"role": "user", "content": f"Say something about the number {number}."}]
        answer = await client.chat.completions.create(
            model=model, messages=messages, max_tokens=8, temperature=0, extra_body={"cache_prompt": False}
        )
        assert answer.model == model
        return answer.choices[0].message.content or ""

    yield asked
    await client.close()


async def test_models_asked_in_turn_are_switched_once_each(pair, ask) -> None:
    await ask("red", 0)
    pair.switches.clear()
    order = ["red", "red", "blue", "blue", "red"]
    for number, model in enumerate(order):
        assert await ask(model, number)
        assert pair.loaded() == {model}
    assert [each["model"] for each in pair.switches] == ["blue", "red"]


@pytest.mark.timeout(900)
async def test_mixed_requests_twice_as_many_as_slots_are_all_answered(pair, ask) -> None:
    """With so many at a time that slots are never idle, models are switched when a turn is over, and not for each.
    Nothing is refused: the line has room for all of them."""
    rng = random.Random(7)
    models = [rng.choice(MODELS) for _ in range(REQUESTS)]
    line = asyncio.Semaphore(2 * 2 * SLOTS)
    waits: list[float] = []

    async def one(number: int, model: str) -> str:
        async with line:
            began = time.monotonic()
            try:
                text = await ask(model, number)
            except openai.APIStatusError as error:
                return f"{error.status_code} {error.message}"
            waits.append(time.monotonic() - began)
            return "answered" if text else "empty"

    outcomes = Counter(await asyncio.gather(*(one(number, model) for number, model in enumerate(models))))
    changes = sum(here != there for here, there in itertools.pairwise(models))
    print(f"{dict(outcomes)}, {changes} changes of model in their order, {len(pair.switches)} switches, ", end="")
    print(f"longest wait {max(waits):.1f} s")
    assert outcomes == {"answered": REQUESTS}
    assert 1 <= len(pair.switches) < changes
