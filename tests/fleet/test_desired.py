"""Desired state over a fleet of real workers and a real nats-server: what the records say comes to be on the disks.

What is on a disk is looked up on the disk, not in what the fleet says of itself.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bus.connection import Bus
from bus.errors import NoStream
from bus.kv import Bucket
from bus.permissions import USER_INFO
from bus.settings import NatsSettings
from schemas.errors import BusUnavailable
from schemas.model import CopyRecord, ModelRecord
from schemas.selector import holders
from schemas.subjects import Names, encode

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).parents[2]
WORKER = "worker:p"
STOP_S = 1.0
"""Typically 0.02 to 0.08 s; a busy machine may take longer."""
ENGINE = ROOT / "tests" / "fakes" / "engine.py"
GRACE_S = 1.0
ONE = {"labels": {"zone": "one"}}
SLOW_BYTES_PER_S = 2 << 20


class Wanted:
    """Nodes, and the records that say what they should have."""

    def __init__(
        self, folder: Path, server: Any, write_model: Callable[..., Path], *, restricted: bool = False
    ) -> None:
        self.folder = folder
        self.server = server
        self.write_model = write_model
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.restricted = restricted
        self._bus: Bus | None = None

    # -- processes
    def start(self, node: str, labels: dict[str, str] | None = None, **settings: Any) -> None:
        """A worker, without an engine: files are what this is about."""
        config = self.folder / f"{node}.yaml"
        if labels is not None or settings or not config.exists():
            told = {
                "labels": labels or {},
                "accelerators": {"allow": ["cpu"]},
                "engine": {"path": str(ENGINE)},
            } | settings
            told["downloads"] = {"startup_stagger_max_s": 0} | settings.get("downloads", {})
            told["desired"] = {"node_gone_grace_s": GRACE_S, "tombstone_s": 0.5} | settings.get("desired", {})
            told["store"] = {"reserved_disk_bytes": 0} | settings.get("store", {})
            config.write_text(json.dumps(told))
        url = self.server.url.replace("://", f"://{WORKER}@") if self.restricted else self.server.url
        argv = ["-m", "worker", "--config", str(config), "--nats", url, "--node", node]
        argv += ["--state-dir", str(self.state(node)), "--http", "127.0.0.1:0", "--log-format", "json"]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_"))}
        with (self.folder / f"{node}.log").open("ab") as log:
            self.workers[node] = subprocess.Popen(
                [sys.executable, *argv], stdout=log, stderr=log, cwd=ROOT, env=environ
            )

    def kill(self, node: str) -> None:
        process = self.workers.pop(node)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for node in tuple(self.workers):
            self.kill(node)

    def state(self, node: str) -> Path:
        return self.folder / node

    def logged(self, node: str, event: str, model: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{node}.log").read_text(errors="replace").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in found if (line.get("event"), line.get("model")) == (event, model)]

    async def joined(self, *nodes: str) -> None:
        """Until all are in the fleet."""
        bucket = Bucket(await self.bus(), "puna_nodes")

        async def all_there() -> bool:
            try:
                return set(nodes) <= set(await bucket.keys())
            except (NoStream, BusUnavailable):
                return False

        await until(all_there)

    # -- what there is
    def has(self, node: str, model: str) -> bool:
        """Whether a whole copy is on the node's disk."""
        return (self.state(node) / "models" / "models" / model / "current" / "manifest.json").exists()

    def who_has(self, model: str) -> set[str]:
        nodes = {path.name for path in self.folder.iterdir() if (path / "models").is_dir()}
        return {node for node in nodes if self.has(node, model)}

    def litter(self, node: str, model: str) -> list[str]:
        """Files of a model, and of models in part, and contents that no copy has."""
        root = self.state(node) / "models"
        notes = [json.loads(path.read_bytes()) for path in root.glob("models/*/current/manifest.json")]
        needed = {f"sha256-{file['sha256']}" for note in notes for file in note["files"]}
        blobs = [path for path in (root / "blobs").iterdir() if path.name not in needed]
        rest = [*(root / "partial").rglob("*"), *(root / "models").glob(model), *root.glob(f"desired/{node}/{model}.*")]
        return [str(path) for path in (*blobs, *rest)]

    # -- records
    async def bus(self) -> Bus:
        if self._bus is None:
            user = {"user": "admin", "password": "p"} if self.restricted else {}
            settings = NatsSettings.model_validate({"url": self.server.url} | user)
            self._bus = await Bus.connect(settings, name="test", timeout_s=20)
        await self._bus.ready(20)
        return self._bus

    async def close(self) -> None:
        if self._bus is not None:
            await self._bus.close()
            self._bus = None

    async def task(self, op: str, **body: Any) -> None:
        """As `nats pub puna.task.<op>` does."""
        await (await self.bus()).js_publish(f"puna.task.{op}", json.dumps(body).encode())

    async def apply(self, model: str, *, file: Path | str | None = None, **fields: Any) -> ModelRecord:
        """Write a record, as an operator's command does."""
        bucket = Bucket(await self.bus(), "puna_models")
        source = f"file://{file}" if isinstance(file, Path) else file
        async with asyncio.timeout(20):
            while True:
                try:
                    entry = await bucket.get(encode(model))
                    break
                except (NoStream, BusUnavailable):
                    await asyncio.sleep(0.05)
        before = ModelRecord.model_validate_json(entry.value) if entry is not None else None
        told: dict[str, Any] = before.model_dump(exclude={"restored"}) if before else {"model": model}
        told |= {"source": source} if source else {}
        told |= {"generation": before.generation + 1 if before else 1, **fields}
        record = ModelRecord.model_validate(told)
        await bucket.update(encode(model), record.model_dump_json().encode(), last=entry.revision if entry else 0)
        return record

    async def record(self, model: str) -> ModelRecord | None:
        try:
            entry = await Bucket(await self.bus(), "puna_models").get(encode(model))
        except (NoStream, BusUnavailable):
            return None
        return ModelRecord.model_validate_json(entry.value) if entry is not None else None

    async def written_at(self, model: str) -> float:
        """When the record was stored, by the server's clock, which is this machine's."""
        entry = await Bucket(await self.bus(), "puna_models").get(encode(model))
        assert entry is not None
        return entry.created_at

    async def copies(self) -> dict[str, CopyRecord]:
        try:
            entries = await Bucket(await self.bus(), "puna_copies").entries()
        except (NoStream, BusUnavailable):
            return {}
        return {key: CopyRecord.model_validate_json(entry.value) for key, entry in entries.items()}

    async def states(self, model: str) -> dict[str, str]:
        return {record.node: record.state for record in (await self.copies()).values() if record.model == model}

    def model(self, name: str, size: int = 20_000) -> Path:
        return self.write_model(self.folder / f"{name}.gguf", {"general.name": name, "x": "y" * size})


async def until(true: Callable[[], Any], limit_s: float = 30.0, say: Callable[[], Any] | None = None) -> Any:
    end = time.monotonic() + limit_s
    while True:
        found = true()
        found = await found if asyncio.iscoroutine(found) else found
        if found:
            return found
        assert time.monotonic() < end, f"not true after {limit_s} s: {say() if say else ''}"
        await asyncio.sleep(0.02)


@pytest.fixture
async def site(tmp_path: Path, new_nats_server: Any, write_model: Callable[..., Path]) -> AsyncIterator[Wanted]:
    folder = tmp_path / "fleet"
    folder.mkdir()
    site = Wanted(folder, new_nats_server(), write_model)
    yield site
    site.stop()
    await site.close()


SMALL_BYTES = 60_000
"""What node c may have of models."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, fake: Callable[[str], Any]) -> Iterator[Wanted]:
    """The workers a, b and c, for tests that have models of their own."""
    folder = tmp_path_factory.mktemp("fleet")
    server = fake("natsd").NatsServer(folder / "nats")
    server.start()
    (folder / "nodes").mkdir()
    site = Wanted(folder / "nodes", server, fake("gguf").write)
    yield site
    site.stop()
    server.kill()


@pytest.fixture
async def three(shared: Wanted) -> AsyncIterator[Wanted]:
    """All three of them run."""
    for node, zone in (("a", "one"), ("b", "one"), ("c", "two")):
        if node not in shared.workers:
            shared.start(node, {"zone": zone}, store={"budget_bytes": SMALL_BYTES} if node == "c" else {})
    await shared.joined("a", "b", "c")
    yield shared
    await shared.close()


def rendezvous(model: str, nodes: list[str], copies: int) -> set[str]:
    return set(holders(model, [(node, 0) for node in nodes], copies))


async def test_copies_come_where_the_record_wants_them_follow_it_and_come_again_to_a_disk_that_was_wiped(
    three: Wanted,
) -> None:
    site = three
    await site.apply("m", file=site.model("m"), placement={"copies": "all", "selector": {"labels": {"zone": "one"}}})
    await until(lambda: site.who_has("m") == {"a", "b"})
    await until(lambda: site.states("m"))
    await site.apply("m", placement={"copies": "all", "selector": {"labels": {"zone": "two"}}})
    await until(lambda: site.who_has("m") == {"c"}, say=lambda: site.who_has("m"))
    await until(lambda: not site.litter("a", "m"))
    await until(lambda: _equals(site.states("m"), {"c": "Ready"}))
    nodes = ["a", "b", "c"]
    for copies, expected in ((1, rendezvous("m", nodes, 1)), (0, set[str]()), (2, rendezvous("m", nodes, 2))):
        await site.apply("m", placement={"copies": copies})
        await until(lambda expected=expected: site.who_has("m") == expected, say=lambda: site.who_has("m"))
    slow = {"weight": 1, "term": {"match": [{"key": "zone", "operator": "In", "values": ["two"]}]}}
    await site.apply("m", placement={"copies": 1, "selector": {"preferred": [slow]}})
    await until(lambda: site.who_has("m") == {"c"}, say=lambda: site.who_has("m"))
    site.kill("c")
    shutil.rmtree(site.state("c"))
    site.start("c")
    await until(lambda: site.who_has("m") == {"c"})


async def _equals(asked: Awaitable[Any], expected: Any) -> bool:
    return await asked == expected


async def test_a_node_that_dies_is_replaced_only_after_the_grace(three: Wanted) -> None:
    site, nodes = three, ["a", "b", "c"]
    await site.apply("g", file=site.model("g"), placement={"copies": 2})
    first = rendezvous("g", nodes, 2)
    await until(lambda: site.who_has("g") == first, say=lambda: (site.who_has("g"), first))
    dead = min(first)
    died_at = time.time()
    site.kill(dead)
    [third] = set(nodes) - first
    await until(lambda: site.has(third, "g"))
    [fetched] = await until(lambda: site.logged(third, "copy_installed", "g"))
    gone = datetime.fromisoformat(fetched["time"]).timestamp() - died_at
    assert gone > GRACE_S, f"fetched {gone} s after another node died"
    site.start(dead)
    await until(lambda: not site.has(third, "g"), say=lambda: site.who_has("g"))
    assert site.who_has("g") == first


async def test_the_next_node_takes_the_share_of_one_that_has_no_room_until_it_has(three: Wanted) -> None:
    site, nodes = three, ["a", "b", "c"]
    model = next(name for name in (f"r{n}" for n in range(99)) if rendezvous(name, nodes, 1) == {"c"})
    [second] = rendezvous(model, nodes, 2) - {"c"}
    await site.apply(model, file=site.model(model, 2 * SMALL_BYTES), placement={"copies": 1})
    await until(lambda: site.who_has(model) == {second}, say=lambda: site.who_has(model))
    record = (await site.copies())[f"{model}.c"]
    assert (record.error, record.generation) == ("no_space", 1)
    await site.apply(model, file=site.model(f"{model}-small", 100))
    await until(lambda: site.who_has(model) == {"c"}, say=lambda: site.who_has(model))


async def test_records_come_back_from_the_disks_of_the_nodes_when_the_server_lost_everything(site: Wanted) -> None:
    for node in ("a", "b"):
        site.start(node)
    await site.joined("a", "b")
    profile = {"context_tokens": 512, "idle_ttl_s": 60}
    await site.apply("m/1", file=site.model("m"), placement={"copies": "all"}, profile=profile, retain=True)
    await site.apply("n", file=site.model("n"), placement={"copies": "all"})
    newest = await site.apply("n", profile={"slots": 2})
    await until(lambda: site.who_has("m=2F1") == site.who_has("n") == {"a", "b"})
    await until(lambda: _noted(site, "n", newest.generation))
    site.kill("b")
    newer = await site.apply("n", profile={"slots": 3})
    await until(lambda: _noted(site, "n", newer.generation, "a"))
    site.kill("a")
    site.server.kill()
    shutil.rmtree(site.server.home / "store")
    site.server.start()
    site.start("b")  # it knows of an older record, and comes first
    await until(lambda: _has_generation(site, "n", newest.generation))
    site.start("a")
    await until(lambda: _has_generation(site, "n", newer.generation))
    restored = await site.record("n")
    assert restored is not None and restored.profile.slots == 3 and restored.restored
    other = await until(lambda: site.record("m/1"))
    assert (other.source, other.retain, other.profile.idle_ttl_s) == (f"file://{site.folder}/m.gguf", True, 60)
    await until(lambda: _noted(site, "n", newer.generation))
    assert site.who_has("m=2F1") == site.who_has("n") == {"a", "b"}


async def _has_generation(site: Wanted, model: str, generation: int) -> bool:
    record = await site.record(model)
    return record is not None and record.generation == generation


def _noted(site: Wanted, model: str, generation: int, *nodes: str) -> bool:
    """Whether each node's copy was made for that generation, and its disk has the record."""
    for node in nodes or ("a", "b"):
        [copy] = (site.state(node) / "models" / "models" / model).glob("current/manifest.json")
        note = site.state(node) / "models" / "desired" / node / f"{model}.json"
        if json.loads(copy.read_bytes()).get("generation") != generation or not note.exists():
            return False
        if json.loads(note.read_bytes())["record"].get("generation", 1) != generation:
            return False
    return True


async def test_a_record_that_was_deleted_while_a_node_was_away_takes_its_copy_and_not_those_of_tasks(
    three: Wanted,
) -> None:
    site = three
    await site.apply("d", file=site.model("d"), placement={"copies": "all", "selector": ONE})
    await until(lambda: site.who_has("d") == {"a", "b"})
    await site.task("download.b", model="own", source=f"file://{site.model('own')}")
    await until(lambda: site.who_has("own") == {"b"})
    await until(lambda: _noted(site, "d", 1))
    site.kill("b")
    await Bucket(await site.bus(), "puna_models").delete("d")
    await until(lambda: site.who_has("d") == {"b"})
    site.server.restart()  # kill -9: the bucket is the same one afterwards
    site.start("b")
    await until(lambda: not site.who_has("d"))
    assert site.who_has("own") == {"b"}
    assert await site.record("d") is None
    await site.task("delete", model="own")
    await until(lambda: not site.who_has("own"))
    await until(lambda: _no_record(site, "own"))


@pytest.fixture
def files(three: Wanted) -> Iterator[Any]:
    """A web server of the site's files, which can be made slow."""
    spec = importlib.util.spec_from_file_location("fakes_started_", ROOT / "tests" / "fakes" / "started.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.Started("fileserver.py", three.folder)
    yield server
    server.stop()


async def test_a_delete_of_everything_stops_a_transfer_at_once_and_leaves_nothing(three: Wanted, files: Any) -> None:
    site = three
    file = site.model("big", 48 << 20)
    files.fault("throttle", bytes_per_s=SLOW_BYTES_PER_S)
    await site.apply("big", file=f"{files.url}/{file.name}", placement={"copies": "all", "selector": ONE})
    for node in ("a", "b"):
        partial = site.state(node) / "models" / "partial"
        await until(lambda partial=partial: any(path.stat().st_size for path in partial.glob("*/data")))
    await site.task("delete", model="big")
    record = await until(lambda: _buried(site, "big"))
    assert record.deleting
    written_at = await site.written_at("big")
    for node in ("a", "b"):
        await until(lambda node=node: not site.litter(node, "big"), say=lambda node=node: site.litter(node, "big"))
        [removal] = await until(lambda node=node: site.logged(node, "desired_remove", "big"))
        assert removal["reason"] == "it was deleted"
        [gone] = await until(lambda node=node: site.logged(node, "copy_removed", "big"))
        took_s = datetime.fromisoformat(gone["time"]).timestamp() - written_at
        assert took_s < STOP_S, f"the transfer was stopped and its files were gone after {took_s} s"
    await until(lambda: _no_record(site, "big"))
    assert await site.states("big") == {}


async def _buried(site: Wanted, model: str) -> ModelRecord | None:
    record = await site.record(model)
    return record if record is not None and record.deleting else None


async def _no_record(site: Wanted, model: str) -> bool:
    return await site.record(model) is None


USERS = """
authorization {{ users: [
  {{ user: admin, password: p }}
  {{ user: worker, password: p, permissions: {{
      publish: {{ allow: {publish} }}, subscribe: {{ allow: {subscribe} }}, allow_responses: true }} }}
] }}
"""


async def test_a_worker_that_may_do_just_what_its_names_say_does_all_of_this(
    tmp_path: Path, new_nats_server: Any, write_model: Callable[..., Path]
) -> None:
    publish, subscribe = Names().worker_needs("a")
    told = {"publish": json.dumps([*publish, USER_INFO]), "subscribe": json.dumps([*subscribe, "_INBOX.>"])}
    server, folder = new_nats_server(USERS.format(**told)), tmp_path / "fleet"
    folder.mkdir()
    site = Wanted(folder, server, write_model, restricted=True)
    try:
        site.start("a")
        await site.joined("a")
        await site.apply("m", file=site.model("m"), placement={"copies": 1})
        await until(lambda: site.has("a", "m"))
        server.kill()
        shutil.rmtree(server.home / "store")
        server.start()
        await until(lambda: site.record("m"))
        await site.task("delete", model="m")
        await until(lambda: not site.has("a", "m"))
        await until(lambda: _no_record(site, "m"))
        assert "Violation" not in server.log_text
    finally:
        site.stop()
        await site.close()
