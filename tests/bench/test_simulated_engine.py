"""The simulated engines and devices: dice that fall alike by seed, memory that adds up, the HTTP of a llama-server."""

from __future__ import annotations

import asyncio
import random
import statistics
from pathlib import Path

import pytest

from bench.simulate import journal, modelfile
from bench.simulate.devices import Gpus, OutOfMemory
from bench.simulate.journal import Journal
from bench.simulate.process import Host, SimulatedProcess
from bench.simulate.settings import Behaviour, simulation
from bench.simulate.times import GIB, Times
from web.call import CallFailed
from web.client import Client
from worker.enginelog import EngineLog
from worker.launch import Command
from worker.modelfile import describe
from worker.ports import PortPool


# -- times
def test_a_lognormal_time_has_the_mean_it_was_told_and_its_own_spread() -> None:
    dice = random.Random(1)
    drawn = [Times.parse("lognormal:0.4:1.0").draw(dice) for _ in range(20_000)]
    assert statistics.fmean(drawn) == pytest.approx(0.4, rel=0.05)
    assert statistics.median(drawn) == pytest.approx(0.4 * 2.718281828**-0.5, rel=0.05)


def test_times_fall_alike_from_the_same_seed_and_not_from_another() -> None:
    def draw(seed: int) -> list[float]:
        dice = random.Random(seed)
        return [Times.parse("exponential:2").draw(dice) for _ in range(5)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_load_time_can_grow_with_the_models_size() -> None:
    assert Times.parse("per-gib:0.25").draw(random.Random(1), 4 * GIB) == 1.0


@pytest.mark.parametrize(
    "text", ["", "slow", "fixed", "fixed:x", "lognormal:1", "fixed:-1", "fixed:nan", "per-gib:1:2"]
)
def test_a_time_that_cannot_be_read_is_refused_with_what_can_be_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"lognormal:MEAN:SIGMA|not below 0"):
        Times.parse(text)


# -- settings
def test_defaults_go_into_each_model_where_its_own_entry_is_silent(tmp_path: Path) -> None:
    config = tmp_path / "sim.yaml"
    config.write_text("nodes: 2\ndefaults: {gib: 4, load: 'per-gib:1'}\nmodels: {a: , b: {gib: 8}}\n")
    told = simulation(config, {"nodes": 3, "slots": None})
    assert told.nodes == 3
    assert [told.models[name].gib for name in "ab"] == [4, 8]
    assert told.models["b"].load == Times("per-gib", 1)


@pytest.mark.parametrize("given", [{}, {"models": {"a": {"gib": 99}}}, {"models": {"a": {"speed": 1}}}])
def test_a_simulation_that_cannot_be_is_refused(given: dict) -> None:
    with pytest.raises(ValueError):
        simulation(None, given)


# -- files and devices
def test_a_model_file_is_whole_for_the_worker_and_takes_no_disk(tmp_path: Path) -> None:
    path = modelfile.write(tmp_path / "big.gguf", 40 * GIB)
    described = describe(path)
    assert described.tensor_bytes == pytest.approx(40 * GIB, rel=1e-6)
    assert described.chat_template
    assert path.stat().st_blocks * 512 < 1 << 20


def test_devices_have_what_engines_do_not_hold_and_refuse_what_they_do_not_have() -> None:
    gpus = Gpus("n", 2, 10 * GIB)
    gpus.take(1, gpus.names, 12 * GIB)
    assert [device.memory_free_bytes for device in gpus.sample()] == [4 * GIB, 4 * GIB]
    with pytest.raises(OutOfMemory):
        gpus.take(2, ["cuda:1"], 5 * GIB)
    assert gpus.free_bytes("cuda:1") == 4 * GIB
    gpus.release(1)
    gpus.release(1)
    assert [device.memory_free_bytes for device in gpus.sample()] == [10 * GIB, 10 * GIB]
    assert gpus.sample()[0].metrics.processes == ()


# -- engines
class Bench:
    """One simulated host with its journal."""

    def __init__(self, folder: Path, like: Behaviour, device_gib: int = 10) -> None:
        self.path = folder / "journal"
        self.gpus = Gpus("n", 1, device_gib * GIB)
        self.log = EngineLog(1 << 16)
        self.host = Host("n", self.gpus, {"m": like}, 1, Journal(self.path))
        self.lease = PortPool(20000, 29999, cooldown_s=0).lease()

    @property
    def port(self) -> int:
        return self.lease.port

    async def launch(self, slots: int = 1) -> SimulatedProcess:
        argv = ("engine", "--port", str(self.port), "--alias", "m", "--parallel", str(slots))
        environment = {"LLAMA_API_KEY": "secret", "SIMULATED_DEVICES": "cuda:0"}
        return await self.host.launch(Command(argv, environment, self.port, "secret", "tag"), self.log)

    def client(self, key: str = "secret") -> Client:
        return Client("127.0.0.1", self.port, headers=[("authorization", f"Bearer {key}")])

    async def until(self, event: str) -> dict:
        async with asyncio.timeout(10):
            while True:
                for line in journal.read(self.path):
                    if line["event"] == event:
                        return line
                await asyncio.sleep(0.005)

    def events(self) -> list[str]:
        return [line["event"] for line in journal.read(self.path)]


QUICK = Behaviour(gib=1, load=Times("fixed", 0.02), stop=Times("fixed", 0.0))
ASK = b'{"messages":[],"max_tokens":30,"seed":5}'


async def test_an_engine_loads_answers_and_gives_its_memory_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUICK)
    process = await bench.launch()
    await bench.until("ready")
    assert bench.gpus.free_bytes("cuda:0") == 9 * GIB
    answer = await bench.client().fetch("POST", "/v1/chat/completions", ASK, timeout_s=5)
    assert answer.status == 200
    assert b'"completion_tokens":30' in answer.body
    assert await process.end(1.0) == -15
    assert bench.gpus.free_bytes("cuda:0") == 10 * GIB
    assert bench.events() == ["load", "ready", "begin", "end", "gone"]
    assert {line["number"] for line in journal.read(bench.path) if "number" in line} == {5}


async def test_an_engine_that_loads_says_so_and_knows_its_key(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUICK.model_copy(update={"load": Times("fixed", 60.0)}))
    process = await bench.launch()
    async with asyncio.timeout(5):
        while bench.gpus.free_bytes("cuda:0") == 10 * GIB:
            await asyncio.sleep(0.005)
    assert (await bench.client().fetch("GET", "/health", timeout_s=5)).status == 503
    assert (await bench.client("wrong").fetch("GET", "/v1/models", timeout_s=5)).status == 401
    await process.end(0.1)


async def test_more_requests_than_slots_wait_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUICK)
    process = await bench.launch(slots=1)
    await bench.until("ready")
    client = bench.client()
    asked = []
    for number in (1, 2, 3):
        body = b'{"messages":[],"max_tokens":40,"seed":%d}' % number
        asked.append(asyncio.ensure_future(client.fetch("POST", "/v1/chat/completions", body, timeout_s=5)))
        while len(asked) == 1 and "begin" not in bench.events():
            await asyncio.sleep(0.002)
    await asyncio.gather(*asked)
    lines = [line for line in journal.read(bench.path) if "number" in line]
    assert [line["event"] for line in lines] == ["begin", "end"] * 3
    await process.end(0.1)


async def test_a_model_that_is_too_big_ends_as_an_engine_without_memory_does(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUICK.model_copy(update={"gib": 11}))
    process = await bench.launch()
    assert await asyncio.wait_for(process.exited, 5) == 1
    assert any("out of memory" in line for line in bench.log.life(10))


async def test_a_crash_ends_the_process_and_breaks_the_answer(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUICK.model_copy(update={"crash": 1.0}))
    process = await bench.launch()
    await bench.until("ready")
    with pytest.raises(CallFailed):
        await bench.client().fetch("POST", "/v1/chat/completions", ASK, timeout_s=5)
    assert await asyncio.wait_for(process.exited, 5) == -11
    assert bench.gpus.free_bytes("cuda:0") == 10 * GIB


async def test_a_hung_engine_answers_nothing_until_it_is_killed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, QUICK.model_copy(update={"hang": 1.0}))
    process = await bench.launch()
    await bench.until("ready")
    asked = asyncio.ensure_future(bench.client().fetch("POST", "/v1/chat/completions", ASK, timeout_s=5))
    await bench.until("hang")
    assert not process.exited.done()
    assert await process.end(0.01) == -9
    with pytest.raises(CallFailed):
        await asked


async def test_an_unfinished_line_of_a_journal_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path) as kept:
        kept.tell("load", node="n")
    with path.open("ab") as file:
        file.write(b'{"at":1,"ev')
    assert [line["event"] for line in journal.read(path)] == ["load"]
