"""A tethered program ends with its parent, however the parent ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from gateway.cli.tether import tethered

PARENT = """
import subprocess, sys
sys.path.insert(0, {root!r})
from gateway.cli.tether import tethered
child = subprocess.Popen(tethered([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]),
                         stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
WATCHED = """
import os, sys, time
sys.path.insert(0, {root!r})
from gateway.cli import tether
pid = os.fork()
if pid == 0:
    tether.fork_watcher(os.getppid())
    os.execv(sys.executable, [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
time.sleep(600)
"""


@pytest.mark.parametrize("program", [PARENT, WATCHED], ids=["by the kernel", "by a watcher"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "kill"])
def test_the_program_is_gone_when_its_parent_is(program, sign) -> None:
    code = program.format(root=os.getcwd())
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, sign)
        parent.wait(5)
    _, alive = psutil.wait_procs([child], timeout=5)
    if alive:
        child.kill()
    assert alive == []


def test_the_program_has_the_process_id_that_was_started_and_its_own_exit_code() -> None:
    command = tethered([sys.executable, "-c", "import os, sys; print(os.getpid(), flush=True); sys.exit(7)"])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
    assert child.returncode == 7


def test_a_program_that_is_not_there_is_said() -> None:
    done = subprocess.run(tethered(["/no/such/program"]), capture_output=True, text=True)
    assert done.returncode == 127
    assert "No such file" in done.stderr
