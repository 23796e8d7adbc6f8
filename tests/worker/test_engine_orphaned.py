"""No engine outlives its worker by more than its grace, whatever else dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
ROOT = Path(__file__).parents[2]
MINDER = "worker/minder.py"
WORKER = """
import asyncio, sys
from pathlib import Path
sys.path.append("tests/fakes")
import gguf
from worker.engine import Engine
from worker.enginespec import EngineBinary, EngineSettings, EngineSpec
from worker.ports import PortPool

async def main():
    folder = Path(sys.argv[1])
    gguf.write(folder / "m.gguf")
    engine = Engine("e0", EngineSpec("m", folder / "m.gguf"), EngineBinary("llama-server", tuple(sys.argv[4:]), "fake"),
                    ports=PortPool(22000, 22999, folder=folder), state_dir=folder,
                    settings=EngineSettings(orphan_grace_s=float(sys.argv[3])))
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""
STUBBORN = (sys.executable, "-S", str(FAKE), "--ignore-sigterm", "--spawn-child")


@dataclass
class Tree:
    """A worker, its engine's minder, and all processes below that."""

    worker: asyncio.subprocess.Process
    minder: psutil.Process
    engine: psutil.Process
    family: list[psutil.Process]


class Trees:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Tree] = []

    async def start(self, *argv: str, loop: str = "asyncio", grace_s: float = 0.0) -> Tree:
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WORKER, str(self._folder), loop, str(grace_s), *argv,
            cwd=ROOT, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert worker.stdout is not None
        async with asyncio.timeout(20):
            engine = psutil.Process(int(await worker.stdout.readline()))
        minder = engine.parent()
        assert minder is not None
        assert MINDER in " ".join(minder.cmdline())
        self._made.append(Tree(worker, minder, engine, [minder, *minder.children(recursive=True)]))
        return self._made[-1]

    async def clear(self) -> None:
        for tree in self._made:
            for process in tree.family:
                if lives(process):
                    process.kill()
            if tree.worker.returncode is None:
                tree.worker.kill()
                await tree.worker.wait()


@pytest.fixture
async def trees(tmp_path: Path) -> AsyncIterator[Trees]:
    made = Trees(tmp_path)
    yield made
    await made.clear()


def lives(process: psutil.Process) -> bool:
    """A zombie is dead: when the system's init collects it is its own affair."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def dead(family: list[psutil.Process], limit_s: float = 1.5) -> float:
    """Wait until all are; how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(limit_s):
        while any(lives(process) for process in family):
            await asyncio.sleep(0.005)
    return time.monotonic() - began


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_without_a_grace_an_engine_and_what_it_started_die_with_a_killed_worker(trees: Trees, loop: str) -> None:
    tree = await trees.start(*STUBBORN, loop=loop)
    assert len(tree.family) == 4, "minder, guard, engine, child"
    tree.worker.kill()
    await tree.worker.wait()
    await dead(tree.family)


async def test_an_engine_behind_a_shell_script_dies_with_a_killed_worker(trees: Trees, tmp_path: Path) -> None:
    script = tmp_path / "llama-server"
    script.write_text(f'#!/bin/sh\n{sys.executable} -S {FAKE} "$@"\nexit $?\n')
    script.chmod(0o755)
    tree = await trees.start(str(script), loop="uvloop")
    assert any("engine.py" in " ".join(process.cmdline()) for process in tree.engine.children())
    tree.worker.kill()
    await tree.worker.wait()
    await dead(tree.family)


async def test_an_engine_outlives_a_killed_worker_by_the_grace_and_no_longer(trees: Trees) -> None:
    tree = await trees.start(*STUBBORN, grace_s=1.0)
    tree.worker.kill()
    await tree.worker.wait()
    assert 0.9 < await dead([tree.engine], 5) < 4.5, "the grace, and two seconds for one that ignores SIGTERM"
    await dead(tree.family)


async def test_a_killed_minder_takes_the_engine_and_what_it_started_with_it(trees: Trees) -> None:
    tree = await trees.start(*STUBBORN, grace_s=30)
    tree.minder.kill()
    await dead(tree.family)
    assert lives(psutil.Process(tree.worker.pid))


async def test_worker_and_minder_killed_together_leave_nothing(trees: Trees) -> None:
    tree = await trees.start(*STUBBORN, grace_s=30)
    tree.worker.kill()
    tree.minder.kill()
    await tree.worker.wait()
    await dead(tree.family)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a minder of processes that were left behind")
async def test_what_an_engine_hid_in_a_session_of_its_own_ends_with_it(trees: Trees, tmp_path: Path) -> None:
    script = tmp_path / "llama-server"
    script.write_text(f'#!/bin/sh\nsetsid sh -c "sleep 600" &\nexec {sys.executable} -S {FAKE} "$@"\n')
    script.chmod(0o755)
    tree = await trees.start(str(script))
    assert any("sleep" in process.name() for process in tree.family)
    tree.engine.kill()
    await dead([each for each in tree.family if each.pid not in (tree.minder.pid, tree.worker.pid)])


async def test_a_frozen_worker_is_no_dead_one(trees: Trees) -> None:
    tree = await trees.start(sys.executable, "-S", str(FAKE))
    tree.worker.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, tree.worker.pid, os.WSTOPPED | os.WNOWAIT) is not None
    with pytest.raises(TimeoutError):
        await dead([tree.engine], 0.5)
    tree.worker.kill()
    await tree.worker.wait()
    await dead(tree.family)


async def test_signals_for_the_workers_group_do_not_reach_its_engines(trees: Trees) -> None:
    tree = await trees.start(sys.executable, "-S", str(FAKE), grace_s=30)
    assert os.getpgid(tree.minder.pid) == tree.minder.pid
    assert os.getpgid(tree.engine.pid) == tree.engine.pid
    assert os.getsid(tree.engine.pid) == tree.minder.pid
