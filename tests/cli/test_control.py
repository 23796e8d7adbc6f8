"""Orders by the command line, as a person types them, to workers that answer as the wire says."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bus.connection import Bus
from bus.settings import NatsSettings
from bus.topology import ensure
from schemas.topology import fleet

ROOT = Path(__file__).parents[2]
OFFER = {"model": "cold", "cost": 2, "devices": ["cuda:0"], "needed_bytes": 2_000_000_000, "free_bytes": 9_000_000_000}
REFUSED = (503, "unavailable", "no room any more")

Run = Callable[..., Awaitable[tuple[int, str, str]]]


def fake_worker() -> types.ModuleType:
    if "fakes_worker" not in sys.modules:
        spec = importlib.util.spec_from_file_location("fakes_worker", ROOT / "tests/fakes/worker.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["fakes_worker"] = module
        spec.loader.exec_module(module)
    return sys.modules["fakes_worker"]


@pytest.fixture
def nats_server(new_nats_server: Callable[..., Any], tmp_path: Path) -> Any:
    """With room for the whole topology."""
    return new_nats_server(f'jetstream {{ store_dir: "{tmp_path}/js", max_mem: 8G, max_file: 8G }}')


@pytest.fixture
async def start_worker(nats_server: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Factory of workers on a server whose streams stand."""
    bus = await Bus.connect(NatsSettings.model_validate({"url": nats_server.url}), name="test")
    await ensure(bus, fleet(bus.names))
    started: list[Any] = []

    async def start(**options: Any) -> Any:
        started.append(await fake_worker().FakeWorker.start(nats_server.url, **options))
        return started[-1]

    yield start
    for worker in started:
        await worker.stop()
    await bus.close()


async def spawn(url: str, tmp_path: Path, *arguments: str) -> asyncio.subprocess.Process:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PUNA_", "NATS_", "XDG_"))}
    environ = kept | {"HOME": str(tmp_path), "NO_COLOR": "1", "NATS_URL": url, "PYTHONUNBUFFERED": "1"}
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT, env=environ)


@pytest.fixture
def puna(nats_server: Any, tmp_path: Path) -> Run:
    """Run the command to its end: code, stdout, stderr."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        process = await spawn(nats_server.url, tmp_path, *arguments)
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    return run


async def test_load_goes_to_the_cheapest_node_and_past_one_that_refuses(puna: Run, start_worker) -> None:
    first = await start_worker(node="n1", offers=[OFFER | {"cost": 1}], refusals={"load": REFUSED})
    second = await start_worker(node="n2", offers=[OFFER])
    code, out, err = await puna("load", "cold", "-o", "json")
    assert (code, err) == (0, "")
    [told] = json.loads(out)
    assert (told["node"], told["result"], told["engine"]) == ("n2", "loading", "engine-9")
    assert first.orders.get_nowait() == second.orders.get_nowait() == ("load", {"model": "cold"})


async def test_load_with_wait_ends_when_the_model_is_ready(puna: Run, start_worker) -> None:
    worker = await start_worker(offers=[OFFER])
    waiting = asyncio.ensure_future(puna("load", "cold", "--wait"))
    assert (await asyncio.wait_for(worker.orders.get(), 10))[0] == "load"
    engine = {"engine": "engine-9", "model": "cold", "devices": [], "slots_total": 1, "since": 1.0}
    worker.engines = [engine | {"state": "starting", "progress": 0.5}]
    await worker.beat()
    worker.engines = [engine | {"state": "ready"}]
    await worker.beat()
    code, out, _ = await waiting
    assert code == 0
    assert "ready" in out


async def test_load_with_wait_says_why_the_model_does_not_come_up(puna: Run, start_worker) -> None:
    worker = await start_worker(offers=[OFFER])
    waiting = asyncio.ensure_future(puna("load", "cold", "--wait"))
    await asyncio.wait_for(worker.orders.get(), 10)
    about = {"engine": "engine-9", "model": "cold", "devices": [], "slots_total": 1, "since": 1.0}
    worker.engines = [about | {"state": "crashed", "reason": "out of memory"}]
    await worker.beat()
    code, _, err = await waiting
    assert code == 1
    assert "out of memory" in err


async def test_what_takes_too_long_is_5(puna: Run, start_worker) -> None:
    await start_worker(offers=[OFFER])
    assert (await puna("load", "cold", "--wait", "--timeout", "0.5"))[0] == 5
    assert (await puna("drain", "n1", "--wait", "--timeout", "0.5"))[0] == 5


async def test_drain_with_wait_ends_when_the_node_has_gone(puna: Run, start_worker) -> None:
    worker = await start_worker()
    waiting = asyncio.ensure_future(puna("drain", "n1", "--wait", "-o", "json"))
    assert (await asyncio.wait_for(worker.orders.get(), 10))[0] == "drain"
    await worker.vanish()
    code, out, _ = await waiting
    assert (code, json.loads(out)[0]["result"]) == (0, "gone")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("load", "nope"), 3, "no node has model"),
        (("load", "cold", "--node", "nope"), 3, "node 'nope' is not there"),
        (("unload", "nope"), 3, "puna ps"),
        (("unload", "--engine", "e1"), 2, "--node"),
        (("unload",), 2, "name a model"),
        (("restart", "nope"), 3, "nope"),
        (("restart", "m"), 2, "--node"),
        (("drain", "nope"), 3, "there is n1, n2"),
        (("explain", "nope"), 3, "puna ls"),
        (("logs", "nope"), 3, "nope"),
    ],
)
async def test_what_is_not_there_or_not_clear_is_said(puna: Run, start_worker, arguments, code, text) -> None:
    for node in ("n1", "n2"):
        await start_worker(node=node, offers=[OFFER])
    done = await puna(*arguments)
    assert (done[0], text in done[2]) == (code, True), done


async def test_unload_reaches_all_nodes_and_ends_with_6_if_one_refuses(puna: Run, start_worker) -> None:
    for node in ("n1", "n2"):
        await start_worker(node=node)
    assert (await puna("unload", "m"))[0] == 0
    pinned = await start_worker(node="n3", refusals={"unload": (503, "unavailable", "it is pinned")})
    code, out, err = await puna("unload", "m", "-o", "json")
    assert code == 6
    assert {one["node"]: one["result"] for one in json.loads(out)} == {
        "n1": "unloading",
        "n2": "unloading",
        "n3": "failed",
    }
    assert "n3: it is pinned" in err
    assert (await puna("unload", "m", "--node", "n3"))[0] == 1
    assert pinned.orders.qsize() == 2


async def test_restart_takes_a_model_or_an_engine(puna: Run, start_worker) -> None:
    worker = await start_worker()
    assert (await puna("restart", "m"))[0] == 0
    assert (await puna("restart", "e1", "--node", "n1"))[0] == 0
    assert [worker.orders.get_nowait() for _ in range(2)] == [
        ("restart", {"model": "m"}),
        ("restart", {"engine": "e1"}),
    ]


async def test_explain_has_one_line_a_node_with_the_numbers(puna: Run, start_worker) -> None:
    await start_worker(node="n1", offers=[OFFER])
    await start_worker(node="n2", offers=[OFFER | {"cost": None, "reason": "12.0 GB needed, 2.0 GB free"}])
    await start_worker(node="n3")
    await start_worker(node="n4", offers=[OFFER | {"cost": 5, "evicts": ["engine-3"]}])
    code, out, _ = await puna("explain", "cold")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "yes" in lines["n1"] and "2.0 GB" in lines["n1"] and "9.0 GB" in lines["n1"] and "room" in lines["n1"]
    assert "no" in lines["n2"] and "12.0 GB needed" in lines["n2"]
    assert "does not have the model" in lines["n3"]
    assert "engine-3" in lines["n4"] and "evict" in lines["n4"]


async def test_explain_shows_the_last_heartbeat_of_a_node_that_does_not_answer(puna: Run, start_worker) -> None:
    await start_worker(node="n1", offers=[OFFER])
    await start_worker(node="n2", offers=[OFFER], refusals={"explain": (500, "internal_error", "broken")})
    code, out, err = await puna("explain", "cold", "-o", "json")
    assert code == 6
    assert [one["offer"]["cost"] for one in json.loads(out)] == [2, 2]
    assert "n2" in err


async def test_logs_are_the_last_lines_and_those_to_come(nats_server, tmp_path, puna: Run, start_worker) -> None:
    worker = await start_worker()
    assert (await puna("logs", "m", "-n", "1"))[1] == "main: ready\n"
    process = await spawn(nats_server.url, tmp_path, "logs", "e1", "--node", "n1", "-f")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"main: loading\n"
        assert await process.stdout.readline() == b"main: ready\n"
        await worker.follow_with("slot 0: done")
        assert await process.stdout.readline() == b"slot 0: done\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


async def test_a_log_that_ends_ends_the_command(puna: Run, start_worker) -> None:
    worker = await start_worker()
    following = asyncio.ensure_future(puna("logs", "m", "-f", "-o", "json"))
    async with asyncio.timeout(20):
        await worker.orders.get()
        while not worker.followers:
            await asyncio.sleep(0.01)
        await worker.follow_with("last words")
        worker.engines = []
        await worker.follow_with()
        code, out, err = await following
    assert code == 1
    assert json.loads(out.splitlines()[-1])["lines"] == ["last words"]
    assert "no more" in err


async def test_a_following_that_its_node_ends_is_begun_again(nats_server, tmp_path, start_worker) -> None:
    worker = await start_worker()
    process = await spawn(nats_server.url, tmp_path, "logs", "m", "-f", "-n", "0")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert (await worker.orders.get())[1]["lines"] == 0
        while not worker.followers:
            await asyncio.sleep(0.01)
        await worker.follow_with()
        assert (await worker.orders.get())[1]["lines"] == 0
        while len(worker.followers) < 2:
            await asyncio.sleep(0.01)
        await worker.follow_with("after")
        assert await process.stdout.readline() == b"after\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


async def test_events_are_read_back_and_followed(nats_server, tmp_path, puna: Run, start_worker) -> None:
    worker = await start_worker()
    for kind in ("node_started", "engine_ready"):
        event = {"node": "n1", "kind": kind, "at": 1.0, "model": "m"}
        await worker.nc.request(f"puna.event.n1.{kind}", json.dumps(event).encode())
    code, out, _ = await puna("events", "-n", "1", "-o", "json")
    assert (code, [json.loads(line)["kind"] for line in out.splitlines()]) == (0, ["engine_ready"])
    assert "model=m" in (await puna("events", "--node", "n1"))[1]
    assert (await puna("events", "--node", "n2"))[1] == ""
    process = await spawn(nats_server.url, tmp_path, "events", "-f", "-o", "json")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        kinds = [json.loads(await process.stdout.readline())["kind"] for _ in range(2)]
        await worker.nc.publish("puna.event.n1.node_draining", b'{"node":"n1","kind":"node_draining","at":2.0}')
        kinds.append(json.loads(await process.stdout.readline())["kind"])
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert kinds == ["node_started", "engine_ready", "node_draining"]


async def test_ps_shows_marks_memory_and_cold_models(puna: Run, start_worker) -> None:
    more = {"pinned": True, "adopted": True, "memory_measured_bytes": 3_000_000_000}
    await start_worker(offers=[OFFER, OFFER | {"model": "big", "cost": None, "reason": "too large"}], more=more)
    lines = {line.split()[1]: line for line in (await puna("ps"))[1].splitlines()}
    assert "pinned, adopted" in lines["m"] and "3.0 GB" in lines["m"] and "0/4" in lines["m"]
    assert "cold" in lines["cold"]
    assert "cold: too large" in lines["big"]
    assert "cold" in (await puna("ls"))[1]


async def test_without_nats_it_is_69(puna: Run) -> None:
    one = {"load": ("m",), "unload": ("m",), "restart": ("m",), "drain": ("n1",), "explain": ("m",), "logs": ("m",)}
    more = {"events": (), "tasks": (), "pull": ("hf://a/b",), "rm": ("m", "-y"), "show": ("m",), "cancel": ("t",)}
    every = [(command, *names) for command, names in (one | more).items()] + [("dlq", "ls"), ("model", "get")]
    nowhere = ("--nats", "nats://127.0.0.1:1")
    told = await asyncio.gather(*(puna(*arguments, *nowhere) for arguments in every))
    assert [
        (arguments, code)
        for arguments, (code, _, err) in zip(every, told, strict=True)
        if code != 69 or "puna up" not in err
    ] == []
