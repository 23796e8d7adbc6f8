"""An update of a model on disk that reads well and does not load, where memory is for one engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import psutil
import pytest
from nats.js.errors import NotFoundError
from openai import AsyncOpenAI

ENGINE = str(Path(__file__).resolve().parents[2] / "fakes" / "engine.py")
MIB = 1 << 20
ONE_ENGINE: dict[str, Any] = {"models": [], "memory_limit_bytes": 70 * MIB, "reserved_memory_bytes": 0}
ONE_ENGINE |= {"engine": {"path": ENGINE, "restart_delay_s": 0.05}, "store": {"reserved_disk_bytes": 0}}
PROFILE = {"slots": 1, "context_tokens": 512}


@pytest.fixture
async def fetch(nats_server: Any, wait_until: Any) -> AsyncIterator[Callable[..., Any]]:
    """`await fetch("t-1", path)`: the model `m` from there, as a task that has ended."""
    client = await nats.connect(nats_server.url)

    async def ask(task: str, path: Path) -> dict[str, Any]:
        body = {"id": task, "model": "m", "source": f"file://{path}", "profile": PROFILE}
        await client.jetstream().publish("puna.task.download_override", json.dumps(body).encode())
        records = await client.jetstream().key_value("puna_tasks")

        async def ended() -> dict[str, Any] | None:
            try:
                told = json.loads((await records.get(task)).value or b"{}")
            except NotFoundError:
                return None
            return told if told["state"] in ("done", "failed", "dead", "cancelled") else None

        found = await wait_until(ended, 30.0)
        assert found["state"] == "done", found
        return found

    yield ask
    await client.close()


def served_from(worker: Any) -> list[str]:
    """The revisions that engines run with; none while one comes or goes."""
    try:
        lines = [process.cmdline() for process in worker.engines()]
    except psutil.Error:
        return []
    return sorted({Path(line[line.index("--model") + 1]).parent.name for line in lines if "--model" in line})


@pytest.mark.timeout(90)
async def test_an_update_that_does_not_load_leaves_the_model_served_from_the_files_before_it(
    new_worker: Any, fetch: Any, tmp_path: Path, write_model: Callable[..., Path], wait_until: Any
) -> None:
    names = {"good": "one", "bad": "does not load", "mended": "three"}
    path = {key: write_model(tmp_path / f"{key}.gguf", {"general.name": name}) for key, name in names.items()}
    worker = await new_worker(ready=False, **ONE_ENGINE)
    async with AsyncOpenAI(base_url=f"{worker.http}/v1", api_key="none", max_retries=0, timeout=30) as sdk:

        async def answers() -> bool:
            messages: Any = [{"role": "user", "content": "count"}]
            answer = await sdk.chat.completions.create(model="m", messages=messages)
            return bool(answer.choices[0].message.content)

        await fetch("t-1", path["good"])
        assert await answers()
        (before,) = served_from(worker)
        await fetch("t-2", path["bad"])
        (told,) = await wait_until(lambda: worker.lines("model_went_back"), 30.0)
        assert told["model"] == "m" and told["reason"]
        assert await answers(), "a request waits for the engine that comes back"
        assert served_from(worker) == [before]
        await fetch("t-3", path["mended"])
        await wait_until(lambda: served_from(worker) not in ([], [before]), 30.0)
        assert await answers()
        assert len(worker.lines("model_went_back")) == 1
