"""The records of a real bucket, followed by one node whose copies are an owner's that does as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from bus.connection import Bus
from bus.kv import Bucket
from bus.settings import NatsSettings
from bus.topology import ensure
from bus.watched import Tasks
from schemas.model import CopyRecord, ModelRecord, Profile, Wanted
from schemas.subjects import encode
from schemas.topology import fleet
from worker.copying import fingerprint
from worker.desired.part import Desired, Places
from worker.desired.reconciler import Here
from worker.desired.settings import DesiredSettings
from worker.desired.shelf import Shelf
from worker.store.manifest import Copy, Manifest


async def until(true: Callable[[], Any], limit_s: float = 20.0) -> Any:
    end = time.monotonic() + limit_s
    while True:
        found = true()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < end, f"not true after {limit_s} s"
        await asyncio.sleep(0.01)


class Owner:
    """Has at once what it is asked for."""

    def __init__(self) -> None:
        self.copies: dict[str, Copy] = {}
        self.removed: list[tuple[str, bool, float]] = []
        self.records: dict[str, CopyRecord] = {}

    async def ensure(self, want: Wanted) -> None:
        generation = want.generation if isinstance(want, ModelRecord) else None
        manifest = Manifest(
            model=want.model,
            source=want.source,
            revision="1",
            serial=1,
            main="m.gguf",
            files=(),
            installed_at=0,
            generation=generation,
            want=fingerprint(want),
            profile=want.profile,
            retain=want.retain,
        )
        self.copies[want.model] = Copy(want.model, "1.0", manifest, Path("/nowhere"), 0.0)

    async def remove(self, model: str, *, retain: bool = False) -> None:
        self.copies.pop(model, None)
        self.removed.append((model, retain, time.monotonic()))

    def postpone(self, want: Wanted, reason: str, at: float) -> None:
        """Nobody looks."""

    def states(self) -> dict[str, CopyRecord]:
        return self.records


class Site:
    """A node, started and ended at will; its disk stays."""

    def __init__(self, bus: Bus, folder: Path) -> None:
        self.bus = bus
        self.folder = folder
        self.owner = Owner()
        self.tasks = Tasks()
        self.models = Bucket(bus, "puna_models")
        self.told: list[str] = []
        self.running: asyncio.Task[None] | None = None
        self.desired: Desired | None = None

    async def repair(self) -> None:
        await ensure(self.bus, fleet(self.bus.names))

    def start(self) -> Desired:
        here = Here("n1", lambda: {"puna.node": "n1"}, lambda each: each, lambda: self.owner.copies, self.owner.states)
        self.desired = Desired(
            self.bus,
            here,
            self.owner,
            Places(self.folder / "records", self.folder / "state"),
            DesiredSettings(tombstone_s=0.2),
            tasks=self.tasks,
            begin_at=0.0,
            repair=self.repair,
            tell=lambda kind, **_: self.told.append(kind),
        )
        self.running = asyncio.create_task(self.desired.run())
        return self.desired

    async def stop(self) -> None:
        if self.running is not None and self.desired is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)
            await self.desired.reconciler.stop()
        await self.tasks.stop()

    async def put(self, model: str = "m", **fields: Any) -> ModelRecord:
        told = {"model": model, "source": "hf://o/r", "placement": {"copies": "all"}} | fields
        record = ModelRecord.model_validate(told)
        await self.models.put(encode(model), record.model_dump_json().encode())
        return record

    async def get(self, model: str = "m") -> ModelRecord | None:
        entry = await self.models.get(encode(model))
        return ModelRecord.model_validate_json(entry.value) if entry is not None else None

    def shelf(self) -> Shelf:
        shelf = Shelf(self.folder / "records" / "n1", self.folder / "state")
        shelf.open()
        return shelf

    async def lose(self) -> None:
        """The bucket goes, with all that was in it."""
        await self.bus.js_api("STREAM.DELETE.KV_puna_models")

    async def has(self, model: str, generation: int = 1) -> None:
        """Until there is a copy of that generation, and it is noted."""

        def there() -> bool:
            copy, noted = self.owner.copies.get(model), self.shelf().noted.get(model)
            same = copy is not None and copy.manifest.generation == generation
            return same and noted is not None and noted.record.generation == generation

        await until(there)
        await until(lambda: self.shelf().bucket)


@pytest.fixture
async def site(nats_server: Any, tmp_path: Path) -> AsyncIterator[Site]:
    bus = await Bus.connect(NatsSettings(url=nats_server.url), name="test")
    site = Site(bus, tmp_path / "node")
    await site.repair()
    yield site
    await site.stop()
    await bus.close()


async def test_a_tombstone_is_acted_on_within_100_ms_of_its_write_and_then_goes(site: Site) -> None:
    site.start()
    await site.put()
    await site.has("m")
    before = time.monotonic()
    await site.put(deleting=True, retain=True, generation=2)
    await until(lambda: site.owner.removed)
    [(model, retain, at)] = site.owner.removed
    assert (model, retain) == ("m", True)
    assert at - before < 0.1
    await until(lambda: _is_none(site.get()))
    assert site.shelf().noted == {}


async def _is_none(found: Any) -> bool:
    return await found is None


async def test_a_tombstone_waits_for_a_node_that_still_has_a_copy(site: Site) -> None:
    site.start()
    held = Bucket(site.bus, "puna_copies")
    await held.put("m.n2", b"{}")
    await site.put(deleting=True)
    grave = site.desired.reconciler._tombstones  # type: ignore[union-attr]
    await until(lambda: any(each.looks for each in grave._graves.values()))
    assert (await site.get()) is not None
    await held.delete("m.n2")
    for each in grave._graves.values():
        each.due_at = 0.0
    site.desired.reconciler.stir()  # type: ignore[union-attr]
    await until(lambda: _is_none(site.get()))


async def test_a_bucket_that_is_lost_under_a_running_node_is_put_back(site: Site) -> None:
    site.start()
    record = await site.put(profile={"slots": 3})
    await site.has("m")
    await site.lose()
    await site.repair()
    await until(lambda: site.get())
    back = await site.get()
    assert back == record.model_copy(update={"restored": True})
    await until(lambda: "records_restored" in site.told)
    assert site.owner.removed == []


async def test_what_somebody_wrote_since_the_loss_is_not_overwritten(site: Site) -> None:
    site.start()
    await site.put(generation=7)
    await site.has("m", 7)
    await site.stop()
    await site.lose()
    await site.repair()
    theirs = await site.put(source="hf://o/other")
    site.start()
    await site.has("m", 1)
    assert await site.get() == theirs
    assert site.owner.copies["m"].manifest.source == "hf://o/other"


async def test_of_two_that_were_put_back_the_newer_generation_counts(site: Site) -> None:
    site.start()
    newer = await site.put(generation=7)
    await site.has("m", 7)
    await site.stop()
    await site.lose()
    await site.repair()
    await site.put(generation=6, restored=True)
    site.start()
    await until(lambda: _is_generation(site, 7))
    assert await site.get() == newer.model_copy(update={"restored": True})


async def _is_generation(site: Site, generation: int) -> bool:
    record = await site.get()
    return record is not None and record.generation == generation


async def test_a_record_that_is_gone_from_the_bucket_that_is_known_takes_its_copy(site: Site) -> None:
    site.start()
    await site.put()
    await site.has("m")
    await site.stop()
    site.owner.copies["own"] = _made_by_a_task(site.owner.copies["m"])
    await site.models.delete("m")
    site.start()
    await until(lambda: site.owner.removed)
    assert list(site.owner.copies) == ["own"]
    assert await site.get() is None


def _made_by_a_task(copy: Copy) -> Copy:
    manifest = copy.manifest.model_copy(update={"model": "own", "generation": None})
    return Copy("own", copy.token, manifest, copy.folder, 0.0)


async def test_a_bucket_that_has_gone_back_in_time_is_put_right_instead_of_believed(site: Site) -> None:
    site.start()
    record = await site.put()
    await site.has("m")
    await site.stop()
    await site.models.delete("m")
    await site.shelf().keep(record, 1000)  # as if the server had lost what it had not yet written to its disk
    site.start()
    await until(lambda: site.get())
    assert site.owner.removed == []
    await until(lambda: site.shelf().noted["m"].revision < 1000)
    await site.models.delete("m")  # from here on it is believed
    await until(lambda: site.owner.removed)


async def test_a_node_that_never_knew_a_bucket_puts_back_what_it_has(site: Site) -> None:
    await site.shelf().keep(ModelRecord(model="m", source="hf://o/r", placement={"copies": "all"}), 5)  # type: ignore[arg-type]
    site.start()
    await until(lambda: site.get())
    await site.has("m")


@pytest.mark.parametrize("value", [b"{", b'{"model": "other", "source": "hf://o/r"}', b'{"model": "m"}'])
async def test_a_record_that_cannot_be_read_harms_neither_its_copy_nor_other_models(site: Site, value: bytes) -> None:
    site.start()
    await site.put()
    await site.has("m")
    await site.models.put("m", value)
    await site.put("n")
    await site.has("n")
    assert site.owner.removed == []
    assert set(site.desired.reconciler.protected()) == {"m", "n"}  # type: ignore[union-attr]


async def test_pinned_models_and_wanted_ones_are_never_cleared(site: Site) -> None:
    site.start()
    await site.put()
    await site.has("m")
    pinned = site.owner.copies["m"].manifest.model_copy(update={"generation": None, "profile": Profile(pinned=True)})
    site.owner.copies["own"] = Copy("own", "1.0", pinned, Path("/nowhere"), 0.0)
    site.owner.copies["loose"] = _made_by_a_task(site.owner.copies["m"])
    assert set(site.desired.reconciler.protected()) == {"m", "own"}  # type: ignore[union-attr]


async def test_what_changed_while_the_server_was_away_is_mended_when_it_is_back(site: Site, nats_server: Any) -> None:
    site.start()
    await site.put()
    await site.has("m")
    nats_server.kill()
    await site.owner.remove("m")
    nats_server.start()
    await until(lambda: "m" in site.owner.copies)
    await site.bus.ready(10)
    assert (await site.get()) is not None
