"""A node's settings in NATS: more than its file, less than its environment, and never what would give it away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bus.connection import Bus
from bus.kv import Bucket
from bus.settings import NatsSettings
from bus.topology import ensure
from schemas.topology import fleet
from worker.settings import WorkerSettings, settings_from
from worker.storedsettings import OWN, refused, with_stored


@pytest.fixture
async def bus(nats_server: Any) -> AsyncIterator[Bus]:
    found = await Bus.connect(NatsSettings(url=nats_server.url), name="test")
    yield found
    await found.close()


@pytest.fixture
def started(nats_server: Any, tmp_path: Path) -> Callable[..., Any]:
    """`await started(environ)` → the settings of node `n.1`, with what is stored for it."""
    config = tmp_path / "c.yaml"
    config.write_text("node: n.1\nslots: 2\nregion: file\ndownloads: {concurrency: 2, hf_max_workers: 2}\n")
    line = {"nats": {"url": nats_server.url}}

    async def start(environ: Mapping[str, str] | None = None) -> WorkerSettings:
        def again(stored: Mapping[str, Any]) -> WorkerSettings:
            return settings_from(config, environ or {}, line, None, stored)

        return await with_stored(again({}), again)

    return start


async def store(bus: Bus, text: str) -> None:
    await ensure(bus, fleet(bus.names))
    await Bucket(bus, "puna_config").put("n=2E1", text.encode())


async def test_what_is_stored_stands_between_file_and_environment(bus, started) -> None:
    await store(bus, '{"slots": 5, "region": "stored", "downloads": {"concurrency": 7, "bytes_per_s": "10M"}}')
    settings = await started({"PUNA_REGION": "environ"})
    assert (settings.slots, settings.region) == (5, "environ")
    assert (settings.downloads.concurrency, settings.downloads.hf_max_workers) == (7, 2)
    assert settings.downloads.bytes_per_s == 10 << 20


async def test_a_fleet_without_the_bucket_and_a_node_without_a_key_are_as_their_files_say(bus, started) -> None:
    assert (await started()).slots == 2
    await ensure(bus, fleet(bus.names))
    assert (await started()).slots == 2


@pytest.mark.parametrize(
    "text",
    [
        "slots: 5\nnats: {url: 'nats://elsewhere:4222'}",
        "slots: 5\nengine: {path: /bin/sh}",
        "slots: 5\nstore: {models_dir: /}",
        "slots: 5\nhttp: {listen: '0.0.0.0:1'}",
        "slots: 5\nregion: ${env.HOME}",
        "slots: many",
        "slot: 5",
        "no mapping",
    ],
)
async def test_of_settings_that_cannot_be_taken_nothing_is(bus, started, caplog, text: str) -> None:
    await store(bus, text)
    assert (await started()).slots == 2
    assert [each.getMessage() for each in caplog.records].count("stored_settings_refused") == 1


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({name: {} for name in OWN}, sorted(OWN)),
        ({"store": {"shared_roots": [{"path": "/"}], "budget_bytes": 1}}, ["store.shared_roots"]),
        ({"limits": {"scratch_dir": "/", "nice": 3}}, ["limits.scratch_dir"]),
        ({"temp_dir": "/tmp", "models_root_dir": "/"}, ["models_root_dir", "temp_dir"]),
        ({"engine": {"startup_timeout_s": 5}, "labels": {"zone": "a"}, "drain_s": "1m"}, []),
    ],
)
def test_a_node_cannot_be_given_away_from_afar(values: dict[str, Any], wrong: list[str]) -> None:
    assert sorted(refused(WorkerSettings, values)) == wrong
