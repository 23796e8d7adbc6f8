"""A download that any node may do, over real workers of which one cannot: it comes to be on the other."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.js.errors import NotFoundError

NO_ROOM = {"store": {"reserved_disk_bytes": 1 << 60}}
ROOM = {"store": {"reserved_disk_bytes": 0}}


@pytest.fixture
async def two(nats_server: Any, new_worker: Any, wait_until: Any) -> AsyncIterator[Callable[..., Any]]:
    """`await two(n1={…}, n2={…})` → asks for downloads and waits for their ends, over nodes with these settings."""
    client = await nats.connect(nats_server.url)

    async def make(**nodes: dict[str, Any]) -> Callable[..., Any]:
        for node, settings in nodes.items():
            await new_worker(node, ready=False, **({"models": []} | settings))
        beats = await client.jetstream().key_value("puna_nodes")

        async def all_told() -> bool:
            try:
                return set(nodes) <= set(await beats.keys())
            except NotFoundError:
                return False

        await wait_until(all_told)
        return ask

    async def ask(task: str, model: str, source: str, **more: str) -> dict[str, Any]:
        body = {"id": task, "model": model, "source": source} | more
        await client.jetstream().publish("puna.task.download", json.dumps(body).encode())
        records = await client.jetstream().key_value("puna_tasks")

        async def ended() -> dict[str, Any] | None:
            try:
                told = json.loads((await records.get(task)).value or b"{}")
            except NotFoundError:
                return None
            return told if told["state"] in ("done", "failed", "dead", "cancelled") else None

        return await wait_until(ended, 30.0)

    yield make
    await client.close()


@pytest.fixture
def web(tmp_path: Path, fake: Callable[[str], Any]) -> Iterator[str]:
    """The address of a web server for the folder `web`."""
    (tmp_path / "web").mkdir()
    server = fake("started").Started("fileserver.py", tmp_path / "web")
    yield server.origins["files"]
    server.stop()


async def test_a_node_without_space_does_not_keep_the_others_from_a_download(
    two: Any, tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    ask = await two(n1=NO_ROOM, n2=ROOM)
    for number in range(3):
        path = write_model(tmp_path / f"m{number}.gguf")
        end = await ask(f"t-{number}", f"m{number}", f"file://{path}")
        assert (end["state"], end["node"]) == ("done", "n2"), end
    here = [(tmp_path / f"state-{node}" / "models" / "models" / "m0" / "current").exists() for node in ("n1", "n2")]
    assert here == [False, True]


async def test_a_credential_that_one_node_has_is_found_and_one_that_none_has_is_told_of_each(
    two: Any, tmp_path: Path, write_model: Callable[..., Path], web: str
) -> None:
    url = web
    write_model(tmp_path / "web" / "m.gguf")
    mine = tmp_path / "token"
    mine.write_text("t0ken\n")
    mine.chmod(0o600)
    ask = await two(n1=ROOM, n2=ROOM | {"secrets": {"mine": str(mine)}})
    for number in range(3):
        end = await ask(f"t-{number}", f"m{number}", f"{url}/m.gguf", token_ref="secret:mine")
        assert (end["state"], end["node"]) == ("done", "n2"), end
        assert all(each["node"] == "n1" and "secret:mine" in each["reason"] for each in end.get("unable", []))
    end = await ask("t-none", "other", f"{url}/m.gguf", token_ref="secret:nobodys")
    assert end["state"] == "failed"
    assert all(f"{node}: secret:nobodys cannot be read" in end["error"] for node in ("n1", "n2")) or (
        "n1, n2:" in end["error"] or "n2, n1:" in end["error"]
    ), end
