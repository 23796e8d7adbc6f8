"""Runs a program that must not outlive its parent: `tether.py PARENT_PID -- PROGRAM [ARGUMENT…]`.

Programs such as nats-server do not look after their parent, and a parent that is killed with -9 cannot look after
them. On Linux the kernel does: the death signal is asked for here, in the child, and outlives the exec. Elsewhere a
forked watcher kills the program when the parent is gone. Either way the program keeps the process id of this one.

Standard library only and no import of ours: this file is run by its path.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_PR_SET_PDEATHSIG = 1
_USAGE_EXIT = 2
_NOT_STARTED_EXIT = 127
_WATCH_EACH_S = 0.2


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as a child which dies with the calling process.

    Start it from the main thread: the kernel's death signal is sent when the *thread* that forked ends.
    """
    return [sys.executable, "-I", str(Path(__file__).resolve()), str(os.getpid()), "--", *command]


def tie_to(parent_pid: int) -> None:
    """From now on this process, whatever it becomes, is killed when its parent ends."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    else:
        fork_watcher(parent_pid)
    if os.getppid() != parent_pid:  # it ended before the tie held
        os._exit(_NOT_STARTED_EXIT)


def fork_watcher(parent_pid: int) -> None:
    """Fork a process that kills the caller when `parent_pid` ends, and ends when the caller does."""
    program_pid = os.getpid()
    if os.fork() != 0:
        return
    import psutil

    os.setsid()
    with contextlib.suppress(psutil.NoSuchProcess):  # the program has ended by itself
        program, parent = psutil.Process(program_pid), _process(parent_pid)
        while _alive(program) and parent is not None and _alive(parent):
            psutil.wait_procs([program], timeout=_WATCH_EACH_S)
        program.kill()
    os._exit(0)


def _process(pid: int) -> psutil.Process | None:
    import psutil

    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


def _alive(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main(arguments: Sequence[str]) -> int:
    """Tie, then become the program. Returns only if it cannot be started."""
    if len(arguments) < 3 or arguments[1] != "--" or not arguments[0].isdigit():
        sys.stderr.write("usage: tether.py PARENT_PID -- PROGRAM [ARGUMENT...]\n")
        return _USAGE_EXIT
    tie_to(int(arguments[0]))
    try:
        os.execvp(arguments[2], list(arguments[2:]))  # noqa: S606  no shell wanted
    except OSError as error:
        sys.stderr.write(f"{arguments[2]}: {error.strerror}\n")
        return _NOT_STARTED_EXIT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
