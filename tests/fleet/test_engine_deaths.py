"""Engines die, freeze and are poisoned under load: two workers, real processes, and clients that notice nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
SLOTS = 4
POISON = "the words that this engine cannot bear"
LIMIT_S = 60.0


class Pair:
    """A gateway and two workers, each with one engine of one model."""

    def __init__(self, folder: Path, nats_url: str, model_file: Path) -> None:
        self.folder = folder
        self.nats_url = nats_url
        self.model_file = model_file
        self.url = ""
        self.processes: list[subprocess.Popen[bytes]] = []

    async def start(self, **flags: Any) -> None:
        """Until both engines are ready."""
        model = {
            "model": "m",
            "path": str(self.model_file),
            "slots": SLOTS,
            "flags": {k: str(v) for k, v in flags.items()},
        }
        told = {"models": [model], "engine": {"path": str(ENGINE), "orphan_grace_s": 0, "restart_delay_s": 0.05}}
        (self.folder / "worker.json").write_text(json.dumps(told))
        nodes = [
            self._run(
                node,
                "worker",
                "--config",
                "worker.json",
                "--node",
                node,
                "--http",
                "127.0.0.1:0",
                "--state-dir",
                node,
                "--log-format",
                "json",
            )
            for node in ("n0", "n1")
        ]
        *_, facts = await asyncio.gather(*nodes, self._run("gateway", "gateway", "--listen", "127.0.0.1:0"))
        self.url = facts["url"]
        await self.until(lambda: all(self.lines(node, "engine_ready") for node in ("n0", "n1")))

    async def _run(self, name: str, *arguments: str) -> dict[str, Any]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
        with (self.folder / f"{name}.log").open("ab") as log:
            argv = [sys.executable, "-m", *arguments, "--nats", self.nats_url]
            process = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=log, cwd=self.folder, env=environ | {"PYTHONPATH": str(ROOT)}
            )
        self.processes.append(process)
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, (self.folder / f"{name}.log").read_text()
        return json.loads(line)

    def lines(self, node: str, event: str) -> list[dict[str, Any]]:
        """What a worker logged under this event."""
        whole, _, _ = (self.folder / f"{node}.log").read_text().rpartition("\n")
        rows = [json.loads(line) for line in whole.splitlines() if line[:1] == "{"]
        return [row for row in rows if row.get("event") == event]

    def count(self, event: str) -> int:
        return sum(len(self.lines(node, event)) for node in ("n0", "n1"))

    def engine(self, node: str) -> psutil.Process:
        """The engine's process that is there now."""
        return psutil.Process(self.lines(node, "engine_ready")[-1]["engine_pid"])

    async def until(self, reached: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
        async with asyncio.timeout(limit_s):
            while not reached():
                await asyncio.sleep(0.01)

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S)

    def end(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, fake: Callable[[str], Any]) -> Iterator[Pair]:
    """One pair for all tests here: each leaves it as it was."""
    folder = tmp_path_factory.mktemp("pair")
    server = fake("natsd").NatsServer(folder / "nats", "")
    server.start()
    made = Pair(folder, server.url, fake("gguf").write(folder / "m.gguf"))
    asyncio.run(made.start(**{"prompt-delay": 0.5, "die-on": POISON, "exit-code": -9}))
    yield made
    made.end()
    server.kill()


@pytest.fixture
async def pair(shared: Pair) -> Pair:
    """Two engines that are ready."""
    await shared.until(lambda: shared.count("engine_ready") == 2 + shared.count("engine_crashed"))
    return shared


@pytest.fixture
async def client(pair: Pair) -> AsyncIterator[Callable[[], openai.AsyncOpenAI]]:
    made: list[openai.AsyncOpenAI] = []

    def make() -> openai.AsyncOpenAI:
        made.append(pair.client())
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def ask(client: openai.AsyncOpenAI, text: str) -> str:
    """What is answered, as a stream."""
    messages: Any = [{"role": "user", "content": text}]
    stream = await client.chat.completions.create(model="m", messages=messages, max_tokens=3, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_requests_without_a_token_are_answered_by_the_other_engine(pair, client, sign) -> None:
    """Both engines are full of prompts that take their time when one of them goes."""
    one, victim, others = client(), pair.engine("n0"), len(pair.lines("n1", "engine_crashed"))
    asked = [asyncio.create_task(ask(one, f"question {number}")) for number in range(2 * SLOTS)]
    await pair.until(lambda: len(victim.net_connections()) > SLOTS)
    hurt_at = time.time()
    victim.send_signal(sign)
    assert await asyncio.wait_for(asyncio.gather(*asked), LIMIT_S) == ["t0 t1 t2 "] * (2 * SLOTS)
    await pair.until(lambda: not victim.is_running() and pair.engine("n0").pid != victim.pid)
    seen_s = datetime.fromisoformat(pair.lines("n0", "engine_crashed")[-1]["time"]).timestamp() - hurt_at
    print(f"seen after {seen_s:.3f} s")
    assert seen_s < (0.5 if sign == signal.SIGKILL else 15.0), "0.1 and 3 s where nothing else runs"
    assert len(pair.lines("n1", "engine_crashed")) == others, "the other engine was left alone"


async def test_a_request_that_kills_engines_is_refused_after_two_and_the_others_are_answered(pair, client) -> None:
    one, before = client(), pair.count("engine_crashed")
    innocents = [asyncio.create_task(ask(one, f"question {number}")) for number in range(2 * SLOTS - 1)]
    poison = asyncio.create_task(ask(one, POISON))
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await asyncio.wait_for(poison, LIMIT_S)
    assert refused.value.code == "request_kills_engine"
    assert await asyncio.wait_for(asyncio.gather(*innocents), LIMIT_S) == ["t0 t1 t2 "] * (2 * SLOTS - 1)
    assert pair.count("engine_crashed") == before + 2
    with pytest.raises(openai.UnprocessableEntityError):
        await ask(one, POISON)
    assert pair.count("engine_crashed") == before + 2, "it is known now"
    assert await ask(one, "and after that") == "t0 t1 t2 "
