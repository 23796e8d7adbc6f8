"""Becomes an engine that cannot outlive its worker: `python -I -S spawn.py PARENT_PID PROGRAM ARGUMENT…`

Started as leader of its own process group with a pipe from the worker as standard input. Three things happen before
the program takes this process over (so its pid and exit status are the engine's own):

* Linux is asked to kill it when the worker's thread that started it ends (the worker starts engines from its main
  thread only), and then the parent is checked, for it may have ended before that.
* A small guard is forked into the group. When the pipe ends (the worker is gone, also by SIGKILL, on any system) or the
  engine ends, it kills the whole group: also what a wrapper script or an engine started. It can be no stranger's group,
  for the guard is itself in it.
* Descriptors other than the standard ones are closed, so that an engine holds nothing of the worker's.

Standard library only, and little of it: this runs before each start of an engine.
"""

import os
import select
import signal
import sys

TAG_VARIABLE = "PUNA_ENGINE_TAG"
"""Environment variable with an engine's random tag: by it, what an engine started is known to be its."""
_PR_SET_PDEATHSIG = 1
_LAST_FD = 65536
_POLL_S = 0.5


def die_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Have the kernel send `number` when the parent ends (Linux); exit at once if it already has."""
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def guard(engine: int) -> None:
    """Wait for the end of the pipe or of the engine; then end the group, this process with it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os.close(quiet)
    try:
        _wait(engine)
    finally:
        os.killpg(0, signal.SIGKILL)


def _wait(engine: int) -> None:
    poll = select.poll()
    poll.register(0, select.POLLIN)
    # where there is no descriptor of a process (macOS), its end is seen by the change of our parent
    every_ms = int(_POLL_S * 1000)
    if hasattr(os, "pidfd_open"):
        poll.register(os.pidfd_open(engine), select.POLLIN)
        every_ms = -1
    while os.getppid() == engine:
        for descriptor, _ in poll.poll(every_ms):
            if descriptor != 0 or not os.read(0, 64):
                return


def main(argv: list[str]) -> None:
    """`argv`: parent's pid, program, its arguments. Does not return."""
    parent, program = int(argv[0]), argv[1:]
    die_with_parent(parent)
    os.closerange(3, _LAST_FD)
    engine = os.getpid()
    if os.fork() == 0:
        guard(engine)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        os.execvp(program[0], program)  # noqa: S606 - replacing this process without a shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(126 if isinstance(error, PermissionError) else 127)


if __name__ == "__main__":
    main(sys.argv[1:])
