"""What a node tells of its copies reaches the bucket, whatever happens to the server, and nothing else stays there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from bus.connection import Bus
from bus.kv import Bucket
from bus.settings import NatsSettings
from bus.topology import ensure
from schemas.errors import PunaError
from schemas.model import CopyRecord
from schemas.subjects import encode
from schemas.topology import Topology, fleet
from worker.copynews import CopyNews

NODE = "n.1"
"""Encoded it is another text: keys must be made of that."""


def record(model: str, **fields: Any) -> CopyRecord:
    return CopyRecord.model_validate({"model": model, "node": NODE, "state": "Ready", "since": 1.0, **fields})


def topology(bus: Bus) -> Topology:
    buckets = fleet(bus.names).buckets
    return Topology(buckets=tuple(spec for spec in buckets if spec.name == bus.names.bucket_copies))


class Town:
    """A bus, its bucket, and the news of one node. `models` are told again when asked for."""

    def __init__(self, bus: Bus, resync_s: float) -> None:
        self.bus = bus
        self.bucket = Bucket(bus, bus.names.bucket_copies)
        self.models: dict[str, CopyRecord] = {}
        self.calls: list[tuple[str, str]] = []
        self.changes = 0
        self.news = CopyNews(
            bus, NODE, self._changed, repair=self._repair, counted=lambda o, r, _: self.calls.append((o, r)),
            resync_s=resync_s,
        )  # fmt: skip
        self.task = asyncio.create_task(self.news.run(self._again))
        bus.on_session(self.news.session)

    def _changed(self) -> None:
        self.changes += 1

    async def _repair(self) -> None:
        await ensure(self.bus, topology(self.bus))

    def _again(self) -> None:
        for model, told in self.models.items():
            self.news.tell(model, told)

    def tell(self, model: str, told: CopyRecord | None) -> None:
        if told is None:
            self.models.pop(model, None)
        else:
            self.models[model] = told
        self.news.tell(model, told)

    async def there(self) -> dict[str, Any]:
        entries = await self.bucket.entries()
        return {key: json.loads(entry.value) for key, entry in entries.items()}

    async def until(self, keys: set[str], timeout_s: float = 20.0) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found = await self.there()
                except PunaError:
                    found = {}
                if found.keys() == keys:
                    return found
                await asyncio.sleep(0.02)


@pytest.fixture
async def new_town(nats_server: Any) -> AsyncIterator[Callable[..., Awaitable[Town]]]:
    made: list[Town] = []

    async def make(resync_s: float = 60.0) -> Town:
        bus = await Bus.connect(NatsSettings(url=nats_server.url), name="test")
        await ensure(bus, topology(bus))
        town = Town(bus, resync_s)
        made.append(town)
        return town

    yield make
    for town in made:
        town.task.cancel()
        await asyncio.wait({town.task})
        await town.bus.close()


def key(model: str, node: str = NODE) -> str:
    return f"{encode(model)}.{encode(node)}"


async def test_records_are_written_changed_and_taken_away(new_town) -> None:
    town = await new_town()
    town.tell("a/b:Q4", record("a/b:Q4"))
    assert (await town.until({key("a/b:Q4")}))[key("a/b:Q4")]["state"] == "Ready"
    town.tell("a/b:Q4", record("a/b:Q4", state="Deleting"))
    town.tell("a/b:Q4", None)
    town.tell("c", record("c"))
    await town.until({key("c")})
    assert town.changes >= 4
    assert {result for _, result in town.calls} == {"success"}


async def test_what_an_earlier_life_told_goes_and_other_nodes_keys_stay(new_town) -> None:
    town = await new_town()
    for name in (key("old"), key("old", "n.2"), key("old", "n2.1")):
        await town.bucket.put(name, record("old").model_dump_json().encode())
    await town.bucket.put(key("gone"), b"{}")
    await town.bucket.delete(key("gone"))
    town.tell("new", record("new"))
    await town.news.session()
    await town.until({key("new"), key("old", "n.2"), key("old", "n2.1")})


async def test_after_the_server_was_killed_and_lost_everything_all_is_told_again(
    new_town, nats_server, tmp_path
) -> None:
    town = await new_town()
    for n in range(20):
        town.tell(f"m{n}", record(f"m{n}"))
    await town.until({key(f"m{n}") for n in range(20)})
    nats_server.kill()
    town.tell("m0", None)
    town.tell("late", record("late"))
    nats_server.start()
    await town.until({key(f"m{n}") for n in range(1, 20)} | {key("late")})


async def test_a_bucket_that_was_deleted_is_made_again_and_filled(new_town) -> None:
    town = await new_town(resync_s=0.2)
    town.tell("a", record("a"))
    town.tell("b", record("b"))
    await town.until({key("a"), key("b")})
    await town.bus.js_api(f"STREAM.DELETE.{town.bucket.stream}")
    await town.until({key("a"), key("b")})


async def test_a_key_that_somebody_deleted_comes_back(new_town) -> None:
    town = await new_town(resync_s=0.2)
    town.tell("a", record("a"))
    await town.until({key("a")})
    await town.bus.js_api(f"STREAM.PURGE.{town.bucket.stream}", {"filter": f"{town.bucket.prefix}{key('a')}"})
    await town.until({key("a")})


async def test_a_record_that_is_too_large_is_cut_and_holds_up_nobody(new_town) -> None:
    town = await new_town()
    large = record("large", reason="r" * 2_000_000, config={"name": "n" * 2_000_000})
    town.tell("large", large)
    town.tell("small", record("small"))
    found = await town.until({key("large"), key("small")})
    assert len(found[key("large")]["reason"]) == 1000
    assert not found[key("large")]["config"]


async def test_a_thousand_models_are_told_and_looked_at_with_one_question(new_town) -> None:
    town = await new_town()
    for n in range(1000):
        town.tell(f"m{n}", record(f"m{n}"))
    found = await town.until({key(f"m{n}") for n in range(1000)}, timeout_s=60)
    assert len(found) == 1000
    town.calls.clear()
    town.news._look = True
    town.news._stirred.set()
    async with asyncio.timeout(20):
        while ("list", "success") not in town.calls or town.news._waiting:
            await asyncio.sleep(0.01)
    assert town.calls == [("list", "success")]
