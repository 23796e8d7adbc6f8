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
from nats.errors import Error as NatsError

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


async def engines_of(requester: Any, *models: str) -> dict[str, dict[str, Any]]:
    """The engines by model, once those of all these are ready."""
    async with asyncio.timeout(20):
        while True:
            told = {each["model"]: each for each in (await requester.verb("n1", "status"))["engines"]}
            if all(model in told and told[model]["state"] == "ready" for model in models):
                return told
            await asyncio.sleep(0.02)


async def ordered(requester: Any, subject: str, task: dict[str, Any]) -> bool:
    """Whether the stream took the task; it may not be there yet."""
    try:
        await requester.client.jetstream().publish(subject, json.dumps(task).encode())
    except NatsError:
        return False
    return True


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
    worker.process = process  # whoever ends the tests' workers ends this one
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


async def test_two_models_of_a_killed_worker_are_both_taken_over(
    new_worker: Any, requester: Any, tmp_path: Path, write_model: Any
) -> None:
    models = [{"model": name, "path": str(write_model(tmp_path / f"{name}.gguf"))} for name in "ab"]
    worker = await new_worker(models=models)
    before = await engines_of(requester, "a", "b")
    worker.process.kill()
    worker.process.wait()
    again = await come_back(worker)
    told = await engines_of(requester, "a", "b")
    assert {name: each["pid"] for name, each in told.items()} == {name: each["pid"] for name, each in before.items()}
    assert all(each["adopted"] for each in told.values())
    assert sum(line["took_s"] for line in again.lines("engine_adopted")) < 2
    assert len(again.lines("engine_planned")) == 2, "one load each, over both lives"


async def test_an_engine_of_a_downloaded_model_is_taken_over_once_the_disk_was_read(
    new_worker: Any, requester: Any, tmp_path: Path, write_model: Any, wait_until: Any
) -> None:
    """Its model is in no settings: at first the new worker does not know it."""
    source = write_model(tmp_path / "fetched.gguf").as_uri()
    worker = await new_worker(ready=False, models=[], downloads={"num_download_worker": 1})
    task = {"model": "fetched", "source": source, "profile": {"preload": True}}
    await wait_until(lambda: ordered(requester, "puna.task.download", task))
    before = await engines_of(requester, "fetched")
    worker.process.kill()
    worker.process.wait()
    again = await come_back(worker)
    told = await engines_of(requester, "fetched")
    assert (told["fetched"]["pid"], told["fetched"]["adopted"]) == (before["fetched"]["pid"], True)
    assert len(again.lines("engine_planned")) == 1


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
