"""A worker that comes back takes over what its earlier life left, if it is what would be started now; else it goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import orjson
import psutil
import pytest

from worker.adoption import Adoptable, adoptable
from worker.engine import Engine
from worker.enginelog import EngineLog
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.mindersocket import NoSocketFolder, listening, socket_path, sweep
from worker.orphans import Notebook
from worker.ports import PortPool
from worker.process import HoldRefused, hold

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
ROOT = Path(__file__).parents[2]
WORKER = """
import asyncio, sys
from pathlib import Path
sys.path.append(sys.argv[2])
import test_adoption_home as home

async def main():
    engine = home.engine(Path(sys.argv[1]))
    await engine.start()
    print(engine.pid, flush=True)
    if "stream" in sys.argv:
        await home.stream(engine)
    await asyncio.Event().wait()

asyncio.run(main())
"""
HOME = (
    f"FAKE = {str(FAKE)!r}"
    + """
import asyncio, sys
from pathlib import Path
from worker.engine import Engine
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.ports import PortPool

class Sink:
    def __init__(self): self.got = asyncio.Event()
    def head(self, status, headers): pass
    def data(self, data): self.got.set()
    def end(self): pass
    def failed(self, error): pass

def engine(folder):
    return Engine("e0", EngineSpec("m", folder / "m.gguf", slots=2),
                  EngineBinary("llama-server", (sys.executable, "-S", FAKE, "--log-requests"), "fake"),
                  ports=PortPool(23000, 23999, cooldown_s=0, folder=folder), state_dir=folder / "state",
                  settings=EngineSettings())

async def stream(engine):
    body = b'{"messages": [{"role": "user", "content": "SECRETWORD"}], "stream": true, "max_tokens": 100000}'
    sink = Sink()
    engine.client.stream("POST", "/v1/chat/completions", body, sink)
    await sink.got.wait()
    print("streams", flush=True)
"""
)


class Lives:
    """Lives of one worker: the first is a process that is killed, those after it are here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Engine] = []
        self.told: list[str] = []
        (folder / "test_adoption_home.py").write_text(HOME)

    async def first(self, *words: str) -> int:
        """Start one, kill it, return the pid of its engine."""
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, str(self.folder), str(self.folder), *words,
            cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert worker.stdout is not None
        async with asyncio.timeout(20):
            pid = int(await worker.stdout.readline())
            if words:
                assert await worker.stdout.readline() == b"streams\n"
        worker.kill()
        await worker.wait()
        return pid

    def engine(self, *flags: str, slots: int = 2, **spec: object) -> Engine:
        """The engine of the next life."""
        binary = EngineBinary("llama-server", (sys.executable, "-S", str(FAKE), "--log-requests", *flags), "fake")
        engine = Engine(
            "e0",
            replace(EngineSpec("m", self.folder / "m.gguf", slots=slots), **spec),  # type: ignore[arg-type]
            binary,
            ports=PortPool(23000, 23999, cooldown_s=0, folder=self.folder),
            state_dir=self.folder / "state",
            settings=EngineSettings(),
            on_change=lambda engine: self.told.append(engine.state),
        )
        self.made.append(engine)
        return engine

    def found(self) -> list[Adoptable]:
        return adoptable(self.folder / "state")

    async def clear(self) -> None:
        for engine in self.made:
            await engine.stop(grace_s=0)
        for each in self.found():
            each.end()


@pytest.fixture
async def lives(tmp_path: Path, write_model: Callable[..., Path]) -> AsyncIterator[Lives]:
    write_model(tmp_path / "m.gguf")
    made = Lives(tmp_path)
    yield made
    await made.clear()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_the_engine_of_a_killed_worker_is_taken_over_as_it_runs(lives: Lives) -> None:
    pid = await lives.first()
    began = time.monotonic()
    (found,) = await asyncio.to_thread(lives.found)
    assert (found.model, found.devices, found.engine_id) == ("m", ("cpu:0",), "e0")
    engine = lives.engine()
    assert await engine.adopt(found)
    assert time.monotonic() - began < 2
    told = engine.snapshot()
    assert (told.state, told.pid, told.adopted, told.reason) == ("ready", pid, True, None)
    assert told.memory_planned_bytes, "its model is known as after a load"
    assert lives.told[-1] == "ready"
    assert engine.client is not None
    assert (await engine.client.fetch("GET", "/slots", timeout_s=5)).status == 200


async def test_an_adopted_engine_is_stopped_and_restarted_like_any_other(lives: Lives) -> None:
    pid = await lives.first()
    engine = lives.engine()
    assert await engine.adopt(lives.found()[0])
    os.kill(pid, 9)
    async with asyncio.timeout(10):
        while engine.pid == pid or engine.state != "ready":
            await engine._changed.wait()
    assert not engine.adopted
    second = engine.pid
    await engine.stop()
    assert second is not None
    assert not alive(second)
    assert list((lives.folder / "state" / "engines").iterdir()) == []


async def test_what_streamed_at_the_kill_has_freed_its_slot_and_left_no_prompt_in_the_log(lives: Lives) -> None:
    await lives.first("stream")
    engine = lives.engine()
    assert await engine.adopt(lives.found()[0])
    assert engine.client is not None
    async with asyncio.timeout(2):
        while b"true" in (await engine.client.fetch("GET", "/slots", timeout_s=5)).body:
            await asyncio.sleep(0.01)
    lines = "\n".join(engine.log.tail(1000))
    assert "listening on" in lines, "what it said before the kill is here again"
    assert "SECRETWORD" not in lines
    assert engine.log.withheld >= 1


@pytest.mark.parametrize("change", ["slots", "flags", "environment", "file", "program"])
async def test_what_would_be_started_differently_now_is_not_taken_over_but_ended(
    lives: Lives, change: str, write_model: Callable[..., Path]
) -> None:
    pid = await lives.first()
    if change == "file":
        write_model(lives.folder / "m.gguf")
    changed: dict[str, Engine] = {
        "slots": lives.engine(slots=3),
        "flags": lives.engine(flags={"jinja": True}),
        "environment": lives.engine(environment={"CUDA_VISIBLE_DEVICES": "1"}),
        "file": lives.engine(),
        "program": lives.engine("--chunks", "5"),
    }
    engine = changed[change]
    assert not await engine.adopt(lives.found()[0])
    assert engine.state == "stopped"
    assert not alive(pid)
    await engine.start()
    assert engine.pid != pid
    assert not engine.adopted


async def test_an_engine_that_was_left_on_purpose_is_taken_over(lives: Lives, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lives.engine()
    await first.start()
    pid = first.pid
    await first.leave()
    assert first.state == "stopped"
    assert pid is not None
    assert alive(pid)
    monkeypatch.setattr("worker.orphans.Note.worker_lives", property(lambda _: False))
    note = Notebook(lives.folder / "state" / "engines").notes()["e0"]
    assert note is not None
    process = await hold(Path(note.socket), note.tag, note.minder_pid, EngineLog())
    assert process.pid == pid
    await process.end(0)


async def test_only_one_worker_can_hold_an_engine_and_the_other_does_it_no_harm(lives: Lives) -> None:
    pid = await lives.first()
    (found,) = lives.found()
    engine, rival = lives.engine(), lives.engine()
    assert sorted(await asyncio.gather(engine.adopt(found), rival.adopt(found))) == [False, True]
    assert alive(pid)
    with pytest.raises(HoldRefused, match="another worker"):
        await hold(Path(found.note.socket), found.note.tag, found.note.minder_pid, EngineLog())


async def test_who_does_not_know_the_tag_is_sent_away(lives: Lives) -> None:
    await lives.first()
    (found,) = lives.found()
    with pytest.raises(HoldRefused, match="does not answer"):
        await hold(Path(found.note.socket), "0" * 16, found.note.minder_pid, EngineLog())


async def test_notes_and_sockets_are_for_this_user_alone(lives: Lives) -> None:
    engine = lives.engine()
    await engine.start()
    note = lives.folder / "state" / "engines" / "e0.engine"
    path = Path(orjson.loads(note.read_bytes())["socket"])
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await engine.stop()
    assert not path.exists()


async def test_an_engine_that_was_still_loading_is_ended(lives: Lives) -> None:
    pid = await lives.first()
    note_file = lives.folder / "state" / "engines" / "e0.engine"
    note_file.write_bytes(orjson.dumps(orjson.loads(note_file.read_bytes()) | {"ready": False}))
    assert await asyncio.to_thread(lives.found) == []
    assert not alive(pid)


async def test_an_engine_of_a_living_worker_is_neither_found_nor_ended(lives: Lives) -> None:
    engine = lives.engine()
    await engine.start()
    assert lives.found() == []
    assert engine.pid is not None
    assert alive(engine.pid)
    assert engine.state == "ready"


async def test_an_engine_that_cannot_be_noted_runs_and_is_told(lives: Lives, caplog: pytest.LogCaptureFixture) -> None:
    (lives.folder / "state").mkdir()
    (lives.folder / "state" / "engines").write_text("no folder")
    engine = lives.engine()
    await engine.start()
    assert engine.state == "ready"
    assert any(getattr(record, "event", "") == "engine_note_unwritten" for record in caplog.records)
    await engine.stop()


def test_a_socket_gets_a_short_private_path_or_none(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    assert not str(socket_path("t", {"XDG_RUNTIME_DIR": str(long)})).startswith(str(long))
    mine = socket_path("t", {"XDG_RUNTIME_DIR": str(tmp_path)})
    if len(str(mine)) <= 100 and str(mine).startswith(str(tmp_path)):
        mine.parent.chmod(0o755)
        assert socket_path("t", {"XDG_RUNTIME_DIR": str(tmp_path)}) != mine


def test_without_a_private_folder_the_reason_names_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.mindersocket._folders", lambda _: iter([tmp_path / ("y" * 99)]))
    with pytest.raises(NoSocketFolder, match="too long a path"):
        socket_path("t", {})


def test_sockets_of_killed_minders_are_swept_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr("worker.mindersocket._folders", lambda _: iter([folder]))
    listening(folder / "dead.sock").close()
    listening(folder / "young.sock").close()
    with listening(folder / "lives.sock"):
        for name in ("dead", "lives"):
            os.utime(folder / f"{name}.sock", (1, 1))
        assert sweep({}) == 1
        assert sorted(path.stem for path in folder.iterdir()) == ["lives", "young"]
    shutil.rmtree(folder)
