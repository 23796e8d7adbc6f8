"""No engine outlives its worker, and none that did meets the next one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

FAKE = Path(__file__).parents[1] / "fakes" / "engine.py"
ROOT = Path(__file__).parents[2]
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
    engine = Engine("e0", EngineSpec("m", folder / "m.gguf"), EngineBinary("llama-server", tuple(sys.argv[3:]), "fake"),
                    ports=PortPool(22000, 22999, folder=folder), state_dir=folder, settings=EngineSettings())
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

if sys.argv[2] == "uvloop":
    import uvloop
    uvloop.run(main())
else:
    asyncio.run(main())
"""


async def started_worker(folder: Path, loop: str, *argv: str) -> tuple[asyncio.subprocess.Process, psutil.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, str(folder), loop, *argv, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return process, psutil.Process(int(await process.stdout.readline()))


def lives(process: psutil.Process) -> bool:
    """A zombie is dead: when the system's init collects it is its own affair."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def dead(family: list[psutil.Process]) -> None:
    """Wait until all are; fails after a second."""
    async with asyncio.timeout(1):
        while any(lives(process) for process in family):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_an_engine_and_what_it_started_die_with_a_worker_that_was_killed(tmp_path: Path, loop: str) -> None:
    fake = (sys.executable, "-S", str(FAKE), "--ignore-sigterm", "--spawn-child")
    worker, engine = await started_worker(tmp_path, loop, *fake)
    family = [engine, *engine.children(recursive=True)]
    assert len(family) == 3, "engine, guard, child"
    worker.kill()
    await worker.wait()
    await dead(family)


async def test_an_engine_behind_a_shell_script_dies_with_a_killed_worker(tmp_path: Path) -> None:
    script = tmp_path / "llama-server"
    script.write_text(f'#!/bin/sh\n{sys.executable} -S {FAKE} "$@"\nexit $?\n')
    script.chmod(0o755)
    worker, engine = await started_worker(tmp_path, "uvloop", str(script))
    family = [engine, *engine.children(recursive=True)]
    assert any("engine.py" in " ".join(process.cmdline()) for process in family[1:])
    worker.kill()
    await worker.wait()
    await dead(family)


async def test_an_engine_goes_on_while_its_worker_is_stopped(tmp_path: Path) -> None:
    worker, engine = await started_worker(tmp_path, "asyncio", sys.executable, "-S", str(FAKE))
    worker.send_signal(signal.SIGSTOP)
    assert os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOWAIT) is not None
    assert engine.is_running()
    worker.kill()
    await worker.wait()
    await dead([engine])
