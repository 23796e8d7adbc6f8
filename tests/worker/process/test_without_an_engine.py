"""A node without an engine program keeps models for the others, and says so; one that is to serve does not start."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nats.errors import Error as NatsError

HIDDEN = """
import sys


class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "xllamacpp":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Hidden())
"""
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bare(tmp_path: Path, nats_server: Any, run_worker: Callable[..., Any]) -> Callable[..., Any]:
    """`bare("--model", …)` → a worker on a host where no engine can be found."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(HIDDEN)

    def run(*arguments: str) -> Any:
        base = ["--nats", nats_server.url, "--node", "n1", "--http", "127.0.0.1:0", "--state-dir", str(tmp_path / "s")]
        environment = {"PATH": str(hidden), "HOME": str(hidden), "PYTHONPATH": f"{hidden}:{ROOT}"}
        return run_worker([*base, "--log-format", "json", *arguments], **environment)

    return run


async def test_a_node_that_names_no_model_starts_without_an_engine_and_takes_models(
    bare: Any, requester: Any, tmp_path: Path, write_model: Any, wait_until: Any
) -> None:
    process = bare()
    facts = json.loads(await asyncio.to_thread(process.stdout.readline))
    assert facts["node"] == "n1"
    rows = [
        json.loads(line)
        for line in (tmp_path / "bare.log").read_text().rpartition("\n")[0].splitlines()
        if line.startswith("{")
    ]
    (absent,) = [row for row in rows if row.get("event") == "engine_absent"]
    assert "no engine found on this host; install one" in absent["reason"]
    task = {"model": "kept", "source": write_model(tmp_path / "kept.gguf").as_uri()}
    stream = requester.client.jetstream()

    async def ordered() -> bool:
        try:
            return bool(await stream.publish("puna.task.download", json.dumps(task).encode()))
        except NatsError:  # the stream is being made
            return False

    async def there() -> bool:
        return (await requester.verb("n1", "inventory"))["labels"].get("model.kept") == "Ready"

    await wait_until(ordered)
    await wait_until(there)
    told = await requester.verb("n1", "inventory")
    assert (told["engines"], told["offers"]) == ([], []), "it has the file, and cannot serve it"


async def test_a_node_that_is_to_serve_says_how_to_get_an_engine(bare: Any, tmp_path: Path, write_model: Any) -> None:
    process = bare("--model", f"m={write_model(tmp_path / 'm.gguf')}")
    assert await asyncio.to_thread(process.wait, 30) == 69
    assert "no engine found on this host; install one" in (tmp_path / "bare.log").read_text()
