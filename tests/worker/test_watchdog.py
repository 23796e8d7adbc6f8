"""A hung engine is told from a busy one, an out-of-memory kill from a crash, and what does not agree is mended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from worker import watchdog
from worker.engine import Engine
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.launch import Confinement
from worker.lifecycle import Lifecycle
from worker.minder import TAG_VARIABLE
from worker.orphans import HOME_VARIABLE, Notebook
from worker.ports import PortPool
from worker.remains import Remains
from worker.watchdog import MemoryDeaths, Sight, Watch

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
LOOK = Sight(0.0, stopped=False, cpu_s=1.0, busy=0)


def verdicts(watch: Watch, *looks: Sight, every_s: float = 1.0) -> list[str | None]:
    return [watch.see(replace(look, at=number * every_s)) for number, look in enumerate(looks)]


def watch(hang_timeout_s: float = 3.0) -> Watch:
    return Watch(hang_timeout_s, 1.0)


# -- the decider


def test_a_stopped_process_hangs_at_the_second_look() -> None:
    first, second = verdicts(watch(), replace(LOOK, stopped=True), replace(LOOK, stopped=True))
    assert first is None
    assert "state T" in str(second)


def test_a_process_that_was_stopped_for_a_moment_does_not() -> None:
    stopped = replace(LOOK, stopped=True)
    assert verdicts(watch(), stopped, LOOK, stopped, LOOK) == [None] * 4


def test_an_idle_engine_hangs_after_three_unanswered_questions_in_a_row() -> None:
    silent = replace(LOOK, answered=False)
    told = verdicts(watch(), silent, LOOK, silent, replace(LOOK, answered=True), silent, silent, silent)
    assert told[:-1] == [None] * 6
    assert "health" in str(told[-1])


@pytest.mark.parametrize("busy", [1, None])
def test_an_engine_that_is_busy_or_may_be_is_never_judged_by_questions(busy: int | None) -> None:
    working = [replace(LOOK, busy=busy, answered=False, cpu_s=float(number)) for number in range(9)]
    assert verdicts(watch(), *working) == [None] * 9


def test_a_busy_engine_that_takes_no_processor_time_hangs_after_its_limit() -> None:
    told = verdicts(watch(), *[replace(LOOK, busy=1)] * 5)
    assert told[:4] == [None] * 4
    assert "hang_timeout_s" in str(told[4])


def test_any_processor_time_or_an_idle_moment_starts_that_limit_anew() -> None:
    still = replace(LOOK, busy=1)
    moved = replace(still, cpu_s=1.01)
    assert verdicts(watch(), still, still, still, moved, moved, moved) == [None] * 6
    assert verdicts(watch(), still, still, still, LOOK, still, still, still) == [None] * 7


def test_a_worker_that_was_frozen_itself_does_not_blame_the_engine() -> None:
    one = watch()
    still = replace(LOOK, busy=1)
    assert one.see(still) is None
    assert one.see(replace(still, at=1)) is None
    assert one.see(replace(still, at=3600)) is None
    assert one.see(replace(still, at=3601)) is None


def test_the_systems_counter_tells_a_kill_for_lack_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counter = tmp_path / "vmstat"
    counter.write_text("pgfault 1\noom_kill 7\n")
    monkeypatch.setattr(watchdog, "_VMSTAT", counter)
    deaths = MemoryDeaths(None)
    assert not deaths.happened()
    counter.write_text("oom_kill 8\n")
    assert deaths.happened()
    deaths.look()
    assert deaths.happened(), "a kill may be told late"
    deaths.look()
    assert not deaths.happened()
    counter.unlink()
    assert not MemoryDeaths(None).happened()


# -- real processes


class Watched:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.busy = 0
        self.made: list[Engine] = []
        self.told: list[tuple[str, str | None]] = []

    def engine(self, *flags: str, **settings: object) -> Engine:
        oom = settings.pop("oom", None)
        confine = settings.pop("confine", lambda _: Confinement())
        free = settings.pop("free", lambda _: None)
        quick = {"restart_delay_s": 0.05, "watch_interval_s": 0.1, "health_interval_s": 0.2}
        engine = Engine(
            "e0",
            EngineSpec("m", self.folder / "m.gguf", slots=2),
            EngineBinary("llama-server", (sys.executable, "-S", str(FAKE), *flags), "fake"),
            ports=PortPool(24000, 24999, cooldown_s=0, folder=self.folder),
            state_dir=self.folder / "state",
            settings=EngineSettings.model_validate(quick | settings),
            busy=lambda: self.busy,
            oom=oom,  # type: ignore[arg-type]
            confine=confine,  # type: ignore[arg-type]
            free=free,  # type: ignore[arg-type]
            on_change=lambda engine: self.told.append((engine.state, engine.reason_code)),
        )
        self.made.append(engine)
        return engine

    async def until(self, engine: Engine, reached: Callable[[], bool], limit_s: float = 15) -> float:
        began = time.monotonic()
        async with asyncio.timeout(limit_s):
            while not reached():
                await engine._changed.wait()
        return time.monotonic() - began

    async def again(self, engine: Engine, first: int) -> float:
        """Seconds until another process is ready."""
        return await self.until(engine, lambda: engine.state == "ready" and engine.pid != first)


@pytest.fixture
async def watched(tmp_path: Path, write_model: Callable[..., Path]) -> AsyncIterator[Watched]:
    write_model(tmp_path / "m.gguf")
    made = Watched(tmp_path)
    yield made
    for engine in made.made:
        await engine.stop(grace_s=0)


def alive(pid: int) -> bool:
    """A zombie is dead: when the system's init collects it is its own affair."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def pid_of(engine: Engine) -> int:
    await engine.start()
    assert engine.pid is not None
    return engine.pid


async def test_a_frozen_engine_is_back_within_three_seconds(watched: Watched) -> None:
    engine = watched.engine(watch_interval_s=0.5, restart_delay_s=0.5)
    first = await pid_of(engine)
    watched.busy = 1
    os.kill(first, signal.SIGSTOP)
    assert await watched.again(engine, first) < 3
    assert ("crashed", "hang") in watched.told
    assert not alive(first)


async def test_an_engine_that_went_deaf_is_restarted_when_it_is_idle_and_left_alone_while_busy(
    watched: Watched,
) -> None:
    engine = watched.engine()
    first = await pid_of(engine)
    watched.busy = 1
    os.kill(first, signal.SIGUSR1)
    with pytest.raises(TimeoutError):
        await watched.until(engine, lambda: engine.pid != first, 1.5)
    watched.busy = 0
    await watched.again(engine, first)
    assert ("crashed", "hang") in watched.told


async def test_a_busy_engine_without_any_processor_time_is_restarted(watched: Watched) -> None:
    engine = watched.engine(hang_timeout_s=0.8)
    first = await pid_of(engine)
    os.kill(first, signal.SIGUSR1)
    watched.busy = 1
    await watched.again(engine, first)
    assert ("crashed", "hang") in watched.told


async def test_a_frozen_minder_does_not_keep_an_engine_from_being_stopped(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.process._KILL_S", 0.3)
    engine = watched.engine()
    first = await pid_of(engine)
    minder = psutil.Process(first).parent()
    assert minder is not None
    minder.suspend()
    async with asyncio.timeout(8):
        await engine.stop(grace_s=0.1)
    assert not alive(first)
    assert not alive(minder.pid)


async def test_an_engine_whose_minder_was_killed_is_started_again_and_the_reason_told(watched: Watched) -> None:
    engine = watched.engine("--spawn-child")
    first = await pid_of(engine)
    minder = psutil.Process(first).parent()
    assert minder is not None
    minder.kill()
    assert await watched.until(engine, lambda: engine.state == "crashed") < 0.1
    assert engine.reason_code == "process-not-found"
    await watched.again(engine, first)


@pytest.mark.parametrize(("oom", "code"), [(True, "out-of-memory"), (False, "killed")])
async def test_a_kill_by_the_system_is_told_from_a_kill_by_somebody(watched: Watched, oom: bool, code: str) -> None:
    engine = watched.engine(oom=lambda: oom, restart_delay_s=5)
    os.kill(await pid_of(engine), signal.SIGKILL)
    assert await watched.until(engine, lambda: engine.state == "crashed") < 0.1
    assert engine.reason_code == code
    assert ("not by Puna" in str(engine.reason)) != oom


async def test_failures_in_a_row_open_the_breaker_and_lasting_health_closes_it(
    watched: Watched, tmp_path: Path
) -> None:
    script = tmp_path / "flaky"
    script.write_text(f'#!/bin/sh\n[ -e {tmp_path}/well ] || exit 7\nexec {sys.executable} -S {FAKE} "$@"\n')
    script.chmod(0o755)
    engine = watched.engine(restart_delay_s=0.02, stable_after_s=0.3)
    engine._home = replace(engine._home, binary=EngineBinary("llama-server", (str(script),), "fake"))
    engine._loop._home = engine._home
    engine.want()
    await watched.until(engine, lambda: engine.breaker_open)
    told = engine.snapshot()
    assert (told.state, told.breaker_open, told.reason_code) == ("crashed", True, "breaker")
    assert "failed 3 times in a row, last: did not start: exit code 7" in str(told.reason)
    assert "next try in" in str(told.reason)
    (tmp_path / "well").touch()
    await watched.until(engine, lambda: engine.state == "ready")
    assert engine.breaker_open, "being ready once proves nothing"
    await watched.until(engine, lambda: not engine.breaker_open)


async def test_why_it_was_stopped_stays_with_it(watched: Watched) -> None:
    engine = watched.engine()
    await engine.start()
    await engine.stop(why="idle for 600 s", code="idle")
    told = engine.snapshot()
    assert (told.state, told.reason, told.reason_code) == ("stopped", "idle for 600 s", "idle")


async def test_limits_are_there_before_the_program_runs_and_freed_when_all_is_gone(
    watched: Watched, tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    freed: list[str] = []
    confinement = Confinement({"nofile": 300, "core": 0}, nice=3, cgroup="/none/such", scratch=str(scratch))
    engine = watched.engine(confine=lambda _: confinement, free=freed.append)
    process = psutil.Process(await pid_of(engine))
    assert process.rlimit(psutil.RLIMIT_NOFILE) == (300, 300)
    assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert process.nice() == psutil.Process().nice() + 3
    assert process.cwd() == str(scratch)
    assert process.environ()["TMPDIR"] == str(scratch)
    assert any("cannot apply cgroup=/none/such" in line for line in engine.log.tail(50))
    assert freed == []
    await engine.stop()
    assert freed == ["e0"]


# -- notes, processes, states


@pytest.fixture
def stray(tmp_path: Path) -> subprocess.Popen[bytes]:
    home = Notebook(tmp_path / "state" / "engines").home
    environment = {TAG_VARIABLE: "stray", HOME_VARIABLE: home}
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], env=environment)


async def test_what_does_not_agree_at_two_looks_is_mended_and_counted(
    watched: Watched, stray: subprocess.Popen[bytes]
) -> None:
    engine = watched.engine()
    first = await pid_of(engine)
    notebook = Notebook(watched.folder / "state" / "engines")
    note = notebook.notes()["e0"]
    assert note is not None
    notebook.write("e7", replace(note, pid=4_194_303))
    life = Lifecycle(watched.folder / "state", lambda: [engine])
    await life.look()
    assert stray.poll() is None
    await life.look()
    assert stray.wait(5) == -signal.SIGKILL
    assert set(notebook.notes()) == {"e0"}
    assert (life.mended.dead, life.mended.gone, life.mended.unknown) == (0, 1, 1)
    await life.look()
    await life.look()
    assert (engine.pid, life.mended.unknown) == (first, 1)


async def test_an_engine_whose_process_is_not_there_is_started_again(watched: Watched) -> None:
    engine = watched.engine()
    first = await pid_of(engine)
    life = Lifecycle(watched.folder / "state", lambda: [engine])
    assert engine._loop.life is not None
    real = engine._loop.life.process.remains
    engine._loop.life.process.remains = Remains(4_194_303, real.started_at, real.tag)
    await life.look()
    await life.look()
    await watched.again(engine, 4_194_303)
    assert not alive(first)
    assert life.mended.dead == 1
