"""A worker that was killed comes back to its engines; one that was asked to end leaves none."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[3]
ENGINE = Path(__file__).resolve().parents[2] / "fakes" / "engine.py"


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def engine_of(requester: Any) -> dict[str, Any]:
    """The one engine that the node tells of, once it is ready."""
    async with asyncio.timeout(10):
        while True:
            engines = (await requester.verb("n1", "status"))["engines"]
            if engines and engines[0]["state"] == "ready":
                return engines[0]
            await asyncio.sleep(0.02)


async def come_back(worker: Any) -> Any:
    """The same command again."""
    with worker.log.open("ab") as out:
        process = subprocess.Popen(
            worker.process.args,
            stdout=subprocess.PIPE,
            stderr=out,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=worker.log.parent,
        )
    assert process.stdout is not None
    facts = json.loads(await asyncio.to_thread(process.stdout.readline))
    return type(worker)(worker.node, process, worker.log, facts)


async def test_a_killed_worker_takes_its_engine_over_without_a_load(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(slots=2)
    first = await engine_of(requester)
    worker.process.kill()
    worker.process.wait()
    again = await come_back(worker)
    told = await engine_of(requester)
    assert (told["pid"], told["adopted"]) == (first["pid"], True)
    (adopted,) = again.lines("engine_adopted")
    assert adopted["took_s"] < 2
    assert len(again.lines("engine_planned")) == 1, "one load over both lives"
    stream = await requester.ask()
    async with asyncio.timeout(10):
        await stream.done.wait()
    assert stream.last.get("code") is None
    again.terminate()
    assert await again.ended() == 0
    assert not alive(first["pid"])


async def test_a_killed_worker_whose_settings_changed_starts_its_engine_anew(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(slots=2)
    first = await engine_of(requester)
    worker.process.kill()
    worker.process.wait()
    again = await new_worker(slots=3, ready=False)
    told = await engine_of(requester)
    assert told["pid"] != first["pid"]
    assert (told["adopted"], told["slots_total"]) == (False, 3)
    assert not alive(first["pid"])
    assert len(again.lines("engine_not_adopted")) == 1


async def test_without_a_grace_a_killed_worker_leaves_nothing(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(engine={"path": str(ENGINE), "orphan_grace_s": 0})
    minder = psutil.Process((await engine_of(requester))["pid"]).parent()
    assert minder is not None
    family = [minder.pid, *(each.pid for each in minder.children(recursive=True))]
    assert len(family) == 3
    worker.process.kill()
    worker.process.wait()
    async with asyncio.timeout(2):
        while any(alive(pid) for pid in family):
            await asyncio.sleep(0.01)


async def test_a_worker_that_is_upgraded_leaves_its_engine_to_the_next_one(new_worker: Any, requester: Any) -> None:
    worker = await new_worker(slots=2)
    first = await engine_of(requester)
    worker.process.send_signal(signal.SIGUSR2)
    assert await worker.ended() == 0
    assert alive(first["pid"])
    again = await come_back(worker)
    told = await engine_of(requester)
    assert (told["pid"], told["adopted"]) == (first["pid"], True)
    again.terminate()
    assert await again.ended() == 0
    assert not alive(first["pid"])
