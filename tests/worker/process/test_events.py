"""What a worker tells of itself on `puna.event.<node>.<kind>`, and that it can be read back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

from nats.js.errors import NoStreamResponseError

from schemas.model import COPY_MOVES
from schemas.node import EngineState

ROOT = Path(__file__).parents[3]


def test_every_kind_of_event_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "wire.md").read_text()
    code = "".join(path.read_text() for path in sorted((ROOT / "worker").rglob("*.py")))
    told = set(re.findall(r'tell\(\s*"([a-z_]+)"', code))
    told |= {f"copy_{state.lower()}" for state in COPY_MOVES} | {"copy_removed", "copy_evicted"}
    told |= {f"engine_{state}" for state in get_args(EngineState)}
    told |= {f"engine_{what}" for what in ("adopted", "breaker_open", "breaker_closed")}
    told |= {f"task_{state}" for state in ("done", "failed", "cancelled", "dead")}
    assert len(told) > 30
    assert sorted(kind for kind in told if f"`{kind}`" not in page) == []


async def events(requester: Any) -> list[dict[str, Any]]:
    stream = requester.client.jetstream()
    found: list[dict[str, Any]] = []
    for sequence in range(1, (await stream.stream_info("PUNA_EVENTS")).state.last_seq + 1):
        message = await stream.get_msg("PUNA_EVENTS", sequence)
        event = json.loads(message.data)
        assert message.subject == f"puna.event.n1.{event['kind']}"
        assert event["node"] == "n1"
        found.append(event)
    return found


async def test_the_life_of_a_node_and_its_engine_can_be_read_back(
    new_worker: Any, requester: Any, wait_until: Any
) -> None:
    worker = await new_worker()
    worker.engines()[0].kill()
    await wait_until(lambda: len(worker.lines("engine_ready")) == 2)
    worker.terminate()
    assert await worker.ended() == 0
    happened = await events(requester)
    told = [event["kind"] for event in happened]
    assert {"node_started", "node_draining"} <= set(told)
    assert told[-1] == "node_stopped"
    engine = [kind for kind in told if kind.startswith("engine_") and kind != "engine_step"]
    first = engine.index("engine_ready")  # the very first start may come before the stream stands
    assert engine[first : first + 4] == ["engine_ready", "engine_crashed", "engine_starting", "engine_ready"]
    assert engine[-1] == "engine_stopped"
    second = [event["step"] for event in happened if event["kind"] == "engine_step"][-4:]
    assert second == ["checked", "port_leased", "confined", "started"]


async def test_what_happens_to_copies_is_told(
    new_worker: Any, requester: Any, wait_until: Any, write_model: Any, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "small.gguf")
    stream = requester.client.jetstream()
    worker = await new_worker(
        ready=False, models=[], downloads={"startup_stagger_max_s": 0, "progress_interval_s": 0.2}
    )

    async def told() -> list[str]:
        return [event["kind"] for event in await events(requester) if event.get("model") == "small"]

    async def asked() -> bool:
        try:
            body = {"model": "small", "source": f"file://{source}"}
            return bool(await stream.publish("puna.task.download", json.dumps(body).encode()))
        except NoStreamResponseError:
            return False

    await wait_until(asked)
    await wait_until(lambda: any(line["state"] == "Ready" for line in worker.lines("copy_state")))
    listed = await requester.verb("n1", "models")
    assert [(one["id"], one["state"], one["copy"]) for one in listed["data"]] == [("small", "unloaded", "Ready")]
    files = await requester.verb("n1", "files", b'{"model": "small"}')
    assert [file["path"] for file in files["files"]] == ["small.gguf"]
    await stream.publish("puna.task.delete.n1", json.dumps({"model": "small"}).encode())

    async def gone() -> bool:
        return "copy_removed" in await told()

    await wait_until(gone)
    happened = [kind for kind in await told() if kind.startswith("copy_")]
    assert happened == [
        "copy_pending", "copy_downloading", "copy_verifying", "copy_ready", "copy_deleting", "copy_removed",
    ]  # fmt: skip
