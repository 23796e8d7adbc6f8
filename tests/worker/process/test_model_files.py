"""A bad model file, or one without room, stops its own engine before it starts, and nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client

MODEL = "org/fake-1.5:Q4"


@pytest.fixture
async def client(nats_server: Any) -> AsyncIterator[Client]:
    connection = await nats.connect(nats_server.url)
    yield connection
    await connection.close()


@pytest.fixture
def engines(client: Client) -> Callable[..., Any]:
    """`await engines()` → the engines of node n1 by model."""

    async def told() -> dict[str, dict[str, Any]]:
        answer = await client.request("puna.node.n1.status", b"", timeout=3)
        return {engine["model"]: engine for engine in json.loads(answer.data)["engines"]}

    return told


@pytest.fixture
def two_models(tmp_path: Path, write_model: Callable[..., Path]) -> list[dict[str, Any]]:
    """One good, one whose file is an error page."""
    good, bad = write_model(tmp_path / "good.gguf"), tmp_path / "bad.gguf"
    bad.write_bytes(b"<html>404 not found, and so on</html>")
    return [{"model": "good", "path": str(good), "slots": 2}, {"model": "bad", "path": str(bad)}]


async def test_a_bad_file_stops_its_own_model_only(new_worker, two_models, engines, wait_until) -> None:
    worker = await new_worker(models=two_models)
    await wait_until(lambda: worker.lines("engine_crashed"))
    told = await engines()
    assert told["good"]["state"] == "ready"
    bad = told["bad"]
    assert (bad["state"], bad["unfit"], bad["pid"]) == ("crashed", True, None)
    assert "bad.gguf cannot be used: bad.gguf: it does not begin with 'GGUF'" in bad["reason"]
    assert bad["next_retry_at"] is not None
    assert bad["reason"] == worker.lines("engine_crashed")[0]["reason"]
    aliases = {word for process in worker.engines() for word in process.cmdline() if word in ("good", "bad")}
    assert aliases == {"good"}, "the bad file never reached an engine"


async def test_a_file_that_is_mended_is_served_without_a_restart(
    new_worker, two_models, engines, wait_until, write_model
) -> None:
    worker = await new_worker(models=two_models, engine={"path": ENGINE, "restart_delay_cap_s": 0.5})
    await wait_until(lambda: worker.lines("engine_crashed"))
    write_model(Path(two_models[1]["path"]))

    async def ready() -> bool:
        return (await engines())["bad"]["state"] == "ready"

    assert await wait_until(ready)
    assert (await engines())["bad"]["unfit"] is False


async def test_the_heartbeat_tells_what_the_model_is_and_what_it_takes(new_worker, engines, wait_until) -> None:
    worker = await new_worker(slots=2)

    async def measured() -> Any:
        return (await engines())[MODEL]["memory_measured_bytes"]

    assert await wait_until(measured) > 1 << 20
    engine = (await engines())[MODEL]
    what = engine["capabilities"]
    assert (what["architecture"], what["can"], what["chat_template"]) == ("llama", ["chat", "completion"], True)
    assert (what["context_tokens"], what["trained_context_tokens"]) == (4096, 4096)
    (planned,) = worker.lines("engine_planned")
    assert planned["memory_bytes"] == engine["memory_planned_bytes"] > 2 * 4096 * 256
    assert planned["plan"] == engine["memory_plan"]
    assert planned["context_tokens"] == 4096
    command = " ".join(worker.engines()[0].cmdline())
    assert "--ctx-size 8192 --parallel 2" in command


async def test_what_an_earlier_worker_measured_corrects_the_next_plan(new_worker, engines, wait_until) -> None:
    first = await new_worker()

    async def measured() -> Any:
        return (await engines())[MODEL]["memory_measured_bytes"]

    taken = await wait_until(measured)
    first.terminate()
    await first.ended()
    await new_worker(ready=False)
    planned = await wait_until(lambda: len(lines := first.lines("engine_planned")) == 2 and lines)
    ratio = min(max(taken / planned[0]["memory_bytes"], 0.5), 3.0)
    assert planned[1]["memory_bytes"] == pytest.approx(planned[0]["memory_bytes"] * (1 + ratio) / 2, rel=0.01)


async def test_a_model_without_room_is_refused_with_the_figures(new_worker, engines, wait_until) -> None:
    worker = await new_worker(ready=False, memory_check="refuse", reserved_memory_bytes=1 << 50)
    await wait_until(lambda: worker.lines("engine_crashed"))
    engine = (await engines())[MODEL]
    assert "would not fit: needs 0.06 GiB (weights" in engine["reason"]
    assert "cpu:0:" in engine["reason"]
    assert engine["memory_planned_bytes"] > 64 << 20
    assert engine["capabilities"]["architecture"] == "llama", "what it is, is known all the same"


async def test_memory_is_not_looked_at_when_told_so(new_worker, engines) -> None:
    await new_worker(memory_check="off", reserved_memory_bytes=1 << 50)
    assert (await engines())[MODEL]["state"] == "ready"


ENGINE = str(Path(__file__).resolve().parents[2] / "fakes" / "engine.py")
