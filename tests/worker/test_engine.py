"""The run loop against the fake engine: a real process, real signals, real HTTP."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from schemas.errors import ModelLoading, Unavailable
from worker.engine import Engine
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.enginestate import MOVES, IllegalMove, check_move
from worker.flags import FlagRefused
from worker.ports import PortPool

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
QUICK = {"restart_delay_s": 0.05, "stop_grace_s": 5.0, "port_cooldown_s": 0.0}


class Watched:
    """An engine and the states that it told."""

    def __init__(self, tmp_path: Path, flags: list[str], settings: dict[str, object], model: str = "org/m:Q4") -> None:
        model_file = tmp_path / "m.gguf"
        self.told: list[str] = []
        self.engine = Engine(
            "e0",
            EngineSpec(model, model_file, context_tokens=512, slots=2),
            EngineBinary("llama-server", (sys.executable, "-S", str(FAKE), *flags), "fake"),
            ports=PortPool(21000, 21999, cooldown_s=0, folder=tmp_path),
            state_dir=tmp_path / "state",
            settings=EngineSettings.model_validate(QUICK | settings),
            on_change=self._note,
        )
        self._changed = asyncio.Event()

    def _note(self, engine: Engine) -> None:
        if self.told[-1:] != [engine.state]:
            self.told.append(engine.state)
        self._changed.set()

    async def until(self, reached: Callable[[Engine], bool]) -> float:
        """Seconds until the engine is so."""
        began = time.monotonic()
        async with asyncio.timeout(20):
            while not reached(self.engine):
                self._changed.clear()
                await self._changed.wait()
        return time.monotonic() - began


Maker = Callable[..., Watched]


@pytest.fixture
async def made(tmp_path: Path, write_model: Callable[..., Path]) -> AsyncIterator[Maker]:
    all_made: list[Watched] = []
    write_model(tmp_path / "m.gguf")

    def make(*flags: str, **settings: object) -> Watched:
        all_made.append(Watched(tmp_path, list(flags), settings))
        return all_made[-1]

    yield make
    for one in all_made:
        await one.engine.stop(grace_s=0)


def group_of(pid: int) -> list[int]:
    found: list[int] = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


async def test_a_small_model_is_ready_at_once_and_tells_its_states(made: Maker) -> None:
    watched = made()
    began = time.monotonic()
    await watched.engine.start()
    assert time.monotonic() - began < 3
    assert watched.told == ["starting", "ready"]
    snapshot = watched.engine.snapshot(slots_busy=1)
    assert (snapshot.state, snapshot.slots_total, snapshot.slots_busy, snapshot.reason) == ("ready", 2, 1, None)
    assert snapshot.pid == watched.engine.pid
    assert snapshot.capabilities.context_tokens == 512
    assert snapshot.load_seconds is not None


async def test_start_and_stop_may_be_called_twice(made: Maker) -> None:
    watched = made()
    await asyncio.gather(watched.engine.start(), watched.engine.start())
    await asyncio.gather(watched.engine.stop(), watched.engine.stop())
    await watched.engine.stop()
    assert watched.told == ["starting", "ready", "stopping", "stopped"]
    await watched.engine.start()
    assert watched.engine.state == "ready"


async def test_stop_leaves_no_process_of_the_group(made: Maker) -> None:
    watched = made("--spawn-child")
    await watched.engine.start()
    pid = watched.engine.pid
    assert pid is not None
    assert len(group_of(pid)) == 3, "engine, its child, the guard"
    await watched.engine.stop()
    assert group_of(pid) == []
    assert watched.engine.pid is None


async def test_an_engine_that_ignores_sigterm_is_killed_after_the_grace(made: Maker) -> None:
    watched = made("--ignore-sigterm")
    await watched.engine.start()
    pid = watched.engine.pid
    assert pid is not None
    began = time.monotonic()
    await watched.engine.stop(grace_s=0.3)
    assert 0.3 <= time.monotonic() - began < 2
    assert group_of(pid) == []


async def test_a_killed_engine_is_seen_within_100_ms_and_started_again(made: Maker) -> None:
    watched = made("--spawn-child")
    await watched.engine.start()
    first = watched.engine.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert await watched.until(lambda engine: engine.state == "crashed") < 0.1
    assert watched.engine.client is None
    assert "SIGKILL" in str(watched.engine.reason)
    assert watched.engine.next_retry_at is not None
    await watched.until(lambda engine: engine.state == "ready")
    assert watched.engine.pid != first
    assert group_of(first) == [], "what the killed engine had started is gone too"


async def test_ensure_ready_waits_for_a_slow_start(made: Maker) -> None:
    watched = made("--slow-start", "0.4")
    client = await watched.engine.ensure_ready(10)
    assert (await client.fetch("GET", "/v1/models", timeout_s=5)).status == 200
    assert await watched.engine.ensure_ready(0) is client


async def test_ensure_ready_names_the_reason_when_the_deadline_passes(made: Maker) -> None:
    watched = made("--slow-start", "30")
    with pytest.raises(ModelLoading, match="loading the model") as caught:
        await watched.engine.ensure_ready(0.3)
    assert caught.value.retry_after_s is not None
    assert caught.value.loading is not None
    assert (caught.value.loading["state"], caught.value.loading["reason"]) == ("loading", "loading the model")
    assert watched.engine.state == "starting"


async def test_a_stop_ends_a_load_and_those_who_wait_for_it(made: Maker) -> None:
    watched = made("--slow-start", "30")
    waiting = asyncio.create_task(watched.engine.ensure_ready(20))
    await watched.until(lambda engine: engine.pid is not None)
    await watched.engine.stop()
    with pytest.raises(Unavailable, match="stopp"):
        await waiting


async def test_a_start_that_takes_too_long_is_given_up(made: Maker) -> None:
    watched = made("--slow-start", "30", startup_timeout_s=0.5)
    with pytest.raises(Unavailable, match=r"not ready after 0.5 s .*/health says 503"):
        await watched.engine.start()
    assert watched.engine.state == "crashed"


async def test_an_engine_that_never_listens_is_given_up(made: Maker) -> None:
    watched = made("--no-listen", startup_timeout_s=0.5)
    with pytest.raises(Unavailable, match="cannot connect"):
        await watched.engine.start()


async def test_a_failed_start_shows_what_the_engine_said(made: Maker) -> None:
    watched = made("--die-at-start", "--say", "0.1 E ggml_cuda: cudaMalloc failed: out of memory", "--exit-code", "3")
    with pytest.raises(Unavailable, match=r"out of memory: take a smaller context.*exit code 3.*cudaMalloc"):
        await watched.engine.start()
    assert watched.engine.snapshot().next_retry_at is not None


async def test_an_engine_built_for_another_cpu_is_said_as_such(made: Maker) -> None:
    watched = made("--die-at-start", "--exit-code", str(-signal.SIGILL.value))
    with pytest.raises(Unavailable, match="another CPU"):
        await watched.engine.start()


async def test_a_missing_program_is_named(made: Maker, tmp_path: Path) -> None:
    watched = made()
    engine = Engine(
        "e1",
        watched.engine.spec,
        EngineBinary("llama-server", ("/nonexistent/llama-server",), "none"),
        ports=PortPool(21000, 21999, cooldown_s=0, folder=tmp_path),
        state_dir=tmp_path,
        settings=EngineSettings(),
    )
    with pytest.raises(Unavailable, match="cannot run /nonexistent/llama-server"):
        await engine.start()
    await engine.stop()


async def test_a_missing_model_file_is_named(made: Maker) -> None:
    watched = made()
    watched.engine.spec.path.unlink()
    with pytest.raises(Unavailable, match=r"m\.gguf cannot be read"):
        await watched.engine.start()


async def test_after_three_failed_starts_waiting_requests_are_refused_at_once(made: Maker) -> None:
    watched = made("--die-at-start", restart_delay_s=0.01)
    with pytest.raises(Unavailable, match="did not start"):
        await watched.engine.ensure_ready(20)
    assert watched.told.count("crashed") >= 3


async def test_the_pause_between_starts_grows_and_has_a_cap(made: Maker) -> None:
    watched = made("--die-at-start", restart_delay_s=0.1, restart_delay_cap_s=0.3)
    pauses: list[float] = []
    watched.engine.want()
    for failures in range(1, 5):
        await watched.until(lambda _, n=failures: watched.told.count("crashed") >= n)
        pauses.append((watched.engine.next_retry_at or 0) - watched.engine.since)
    bounds = [(0.05, 0.1), (0.1, 0.2), (0.15, 0.3), (0.15, 0.3)]
    for pause, (low, high) in zip(pauses, bounds, strict=True):
        assert low - 0.01 <= pause <= high + 0.01


async def test_somebody_elses_engine_on_the_port_is_not_taken_for_ours(made: Maker) -> None:
    watched = made("--wrong-alias")
    with pytest.raises(Unavailable, match="serves a different model"):
        await watched.engine.start()


async def test_restart_gives_a_new_process(made: Maker) -> None:
    watched = made()
    await watched.engine.start()
    first = watched.engine.pid
    await watched.engine.restart()
    assert watched.engine.state == "ready"
    assert watched.engine.pid != first


async def test_the_key_is_needed_and_not_in_the_command_line(made: Maker) -> None:
    watched = made()
    await watched.engine.start()
    assert watched.engine.client is not None
    assert (await watched.engine.client.fetch("GET", "/slots", timeout_s=5)).status == 200
    answer = await watched.engine.client.fetch("GET", "/slots", timeout_s=5, headers=[("x-other", "1")])
    assert answer.status == 200
    process = psutil.Process(watched.engine.pid)
    key = process.environ()["LLAMA_API_KEY"]
    assert len(key) >= 32
    assert not any(key in word for word in process.cmdline())


async def test_what_requests_hold_never_reaches_the_log_or_the_reason(made: Maker) -> None:
    watched = made("--log-requests", "--die-after", "3")
    client = await watched.engine.ensure_ready(10)
    body = b'{"messages": [{"role": "user", "content": "llama_x: failed to SECRETWORD error out of memory"}]}'
    with pytest.raises(Exception, match=r"."):
        await client.fetch("POST", "/v1/chat/completions", body, timeout_s=10)
    await watched.until(lambda engine: "crashed" in watched.told)
    await watched.until(lambda engine: engine.state == "ready")
    assert "SECRETWORD" not in "\n".join(watched.engine.log.tail(1000)) + str(watched.engine.reason)
    assert watched.engine.log.withheld >= 1


async def test_a_load_tells_its_progress_from_the_last_ones_time(made: Maker) -> None:
    watched = made("--slow-start", "0.3")
    await watched.engine.start()
    await watched.engine.stop()
    assert watched.engine.progress is None
    watched.engine.want()
    await watched.until(lambda engine: engine.state == "starting")
    progress = watched.engine.snapshot().progress
    assert progress is not None
    assert 0 <= progress <= 0.95


async def test_a_listener_that_fails_does_not_end_the_engine(made: Maker, caplog: pytest.LogCaptureFixture) -> None:
    watched = made()

    def broken(_: Engine) -> None:
        raise RuntimeError("listener")

    watched.engine._on_change = broken
    await watched.engine.start()
    assert watched.engine.state == "ready"
    assert any(getattr(record, "event", "") == "engine_listener_failed" for record in caplog.records)


async def test_twenty_starts_and_stops_in_disorder_end_where_the_last_wish_says(made: Maker) -> None:
    watched = made()
    for turn in range(20):
        asked = watched.engine.start() if turn % 3 else watched.engine.stop(grace_s=1)
        task = asyncio.create_task(asked)
        await asyncio.wait({task}, timeout=0.03)
        task.add_done_callback(lambda done: done.exception())
    await watched.engine.stop()
    assert watched.engine.state == "stopped"
    assert watched.engine.pid is None


def test_a_flag_that_breaks_a_promise_is_refused_when_the_engine_is_made(tmp_path: Path) -> None:
    with pytest.raises(FlagRefused, match="--port may not be set"):
        Engine(
            "e0",
            EngineSpec("m", tmp_path, flags={"port": "1"}),
            EngineBinary("llama-server", ("x",), ""),
            ports=PortPool(),
            state_dir=tmp_path,
            settings=EngineSettings(),
        )


def test_only_moves_of_the_table_are_legal() -> None:
    for old, targets in MOVES.items():
        for new in MOVES:
            if new in targets:
                check_move(old, new)
            else:
                with pytest.raises(IllegalMove):
                    check_move(old, new)
