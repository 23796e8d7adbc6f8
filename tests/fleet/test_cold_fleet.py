"""A fleet whose models are on disk and nowhere loaded: real nats-server, gateway and workers, simulated engines.

What is counted is in the engines' own journals, not in what the fleet says of itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest

from bench.simulate import journal

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).parents[2]
SPILL_AFTER_S = 2.0
LATE_S = 0.3
"""A lease begins a moment before the load that it allows; two loads may be so much closer than the lease is long."""
GIB_OF_MODEL, GIB_OF_DEVICE = 16, 24
"""One model to a device."""


class ColdFleet:
    """Simulated nodes in several processes, and a gateway."""

    def __init__(self, folder: Path, nats_url: str) -> None:
        self.folder = folder
        self.nats_url = nats_url
        self.url = ""
        self.groups: list[subprocess.Popen[bytes]] = []
        self._others: list[subprocess.Popen[bytes]] = []
        self._nodes = 0

    async def nodes(self, count: int, models: list[str], **behaviour: Any) -> None:
        """One more process with so many nodes."""
        number = len(self.groups)
        defaults = {"gib": GIB_OF_MODEL, "load": 0.5, "profile": {"preload": False}} | behaviour
        told = {"nodes": count, "first": self._nodes, "device_gib": GIB_OF_DEVICE, "slots": 4, "defaults": defaults}
        told |= {"models": dict.fromkeys(models), "worker": {"spill_after_s": SPILL_AFTER_S}}
        config = self.folder / f"nodes-{number}.yaml"
        config.write_text(json.dumps(told))
        kept = self.folder / f"journal-{number}"
        kept.touch()
        argv = ["bench.simulate", "--config", str(config), "--folder", str(self.folder / "simulation")]
        process, _ = await self._run(f"nodes-{number}", *argv, "--journal", str(kept))
        self.groups.append(process)
        self._nodes += count

    async def gateway(self) -> None:
        """The one gateway."""
        process, facts = await self._run("gateway", "gateway", "--listen", "127.0.0.1:0")
        self._others.append(process)
        self.url = facts["url"]

    async def _run(self, name: str, *arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        environ = os.environ | {"PYTHONPATH": str(ROOT), "PUNA_SPILL_AFTER_S": str(SPILL_AFTER_S)}
        with (self.folder / f"{name}.log").open("ab") as log:
            argv = [sys.executable, "-m", *arguments, "--nats", self.nats_url]
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=environ, cwd=ROOT)
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, (self.folder / f"{name}.log").read_text()
        return process, json.loads(line)

    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=100)

    # -- what the engines say
    def events(self, *kinds: str, group: int | None = None) -> list[dict[str, Any]]:
        paths = [self.folder / f"journal-{number}" for number in range(len(self.groups))]
        chosen = paths if group is None else [paths[group]]
        return [line for line in journal.read(*chosen) if line["event"] in kinds]

    async def until(self, reached: Callable[[], bool], limit_s: float = 30.0) -> None:
        async with asyncio.timeout(limit_s):
            while not reached():
                await asyncio.sleep(0.01)

    def end(self) -> None:
        for process in (*self.groups, *self._others):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def cold(nats_server: Any, tmp_path: Path) -> Iterator[ColdFleet]:
    fleet = ColdFleet(tmp_path, nats_server.url)
    yield fleet
    fleet.end()


@pytest.fixture
async def client(cold: ColdFleet) -> AsyncIterator[Callable[[], openai.AsyncOpenAI]]:
    made: list[openai.AsyncOpenAI] = []

    def make() -> openai.AsyncOpenAI:
        made.append(cold.client())
        return made[-1]

    yield make
    for each in made:
        await each.close()


def ask(client: openai.AsyncOpenAI, model: str, number: int, tokens: int = 100) -> Awaitable[Any]:
    """One request, answered in one piece; `number` is found again in the journals."""
    messages: Any = [{"role": "user", "content": "How long is a piece of string?"}]
    return client.chat.completions.create(model=model, messages=messages, max_tokens=tokens, seed=number)


async def test_the_first_request_for_a_model_on_disk_starts_exactly_one_engine_in_the_fleet(cold, client) -> None:
    await cold.nodes(3, ["a", "b", "c"])
    await cold.nodes(3, ["a", "b", "c"])
    await cold.gateway()
    first = await ask(client(), "a", 1)
    assert first.choices[0].message.content
    assert [line["model"] for line in cold.events("load")] == ["a"]
    others = await asyncio.gather(ask(client(), "b", 2), ask(client(), "c", 3), ask(client(), "a", 4))
    assert all(each.choices[0].message.content for each in others)
    assert sorted(line["model"] for line in cold.events("load")) == ["a", "b", "c"]
    places = {(line["node"], *line["devices"]) for line in cold.events("load")}
    assert len(places) == 3, "each model has a device of its own while others are empty"


async def test_a_burst_for_one_model_takes_more_devices_only_after_each_spill_after(cold, client) -> None:
    await cold.nodes(4, ["a"])
    await cold.nodes(4, ["a"])
    await cold.gateway()
    one = client()
    answers = await asyncio.gather(*(ask(one, "a", number, tokens=400) for number in range(200)))
    assert all(each.choices[0].message.content for each in answers)
    loads = [line["at"] / 1e9 for line in cold.events("load")]
    assert len(loads) > 1, "one engine would take 20 s"
    assert min(later - earlier for earlier, later in pairwise(loads)) > SPILL_AFTER_S - LATE_S
    served = [line["number"] for line in cold.events("end")]
    assert sorted(served) == list(range(200)), "each was answered once, by one engine"


async def test_frozen_nodes_lose_nothing(cold, client) -> None:
    """The engine that has all the work freezes with its node, and so do cold nodes that wait for work."""
    await cold.nodes(2, ["a"])
    await cold.gateway()
    one = client()
    await ask(one, "a", 1000)
    await cold.nodes(2, ["a"])
    asked = [asyncio.ensure_future(ask(one, "a", number, tokens=600)) for number in range(24)]
    await cold.until(lambda: len(cold.events("begin", group=0)) > 4)
    cold.groups[0].send_signal(signal.SIGSTOP)
    answers = await asyncio.gather(*asked)
    assert all(each.choices[0].message.content for each in answers)
    elsewhere = {line["number"] for line in cold.events("end", group=1)}
    assert elsewhere, "who did not freeze took over"
    before = {line["number"] for line in cold.events("end", group=0)}
    assert elsewhere | before >= set(range(24))


async def test_an_engine_that_crashes_while_it_loads_is_started_elsewhere(cold, client) -> None:
    await cold.nodes(2, ["a"], crash_at_load=1.0)
    await cold.nodes(2, ["a"])
    await cold.gateway()
    answer = await ask(client(), "a", 1)
    assert answer.choices[0].message.content
    assert len(cold.events("ready", group=1)) == 1
    assert not cold.events("ready", group=0)


async def test_a_worker_killed_under_load_with_two_models_loses_nothing(cold, client) -> None:
    """Both engines that have the work are its own; they are gone with it, and so are the claims of what it held."""
    models = ("a", "b")
    await cold.nodes(2, [*models])
    await cold.gateway()
    one = client()
    await asyncio.gather(*(ask(one, model, 1000 + number) for number, model in enumerate(models)))
    await cold.nodes(2, [*models])
    asked = [asyncio.ensure_future(ask(one, models[number % 2], number, tokens=400)) for number in range(24)]
    await cold.until(lambda: {line["model"] for line in cold.events("begin", group=0)[2:]} == {*models})
    cold.groups[0].kill()
    answers = await asyncio.gather(*asked)
    assert [each.model for each in answers] == [models[number % 2] for number in range(24)]
    assert all(each.choices[0].message.content for each in answers)
    ends = [line["number"] for line in cold.events("end") if line["number"] < 1000]
    assert set(ends) == set(range(24))
    assert {line["model"] for line in cold.events("end", group=1)} == {*models}, "who lived took over"
