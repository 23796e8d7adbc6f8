"""One engine process: started so that it ends with its worker, its output taken in, its end seen at once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

import psutil

from worker.enginelog import EngineLog
from worker.launch import Command

_SPAWN: Final = Path(__file__).with_name("spawn.py")
_GONE_POLL_S: Final = 0.01


class EngineProcess(asyncio.SubprocessProtocol):
    """A running engine. Made by `launch`; `exited` resolves with its exit code (negative: a signal)."""

    def __init__(self, log: EngineLog) -> None:
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.output_ended = asyncio.Event()
        self.pid = 0
        self._log = log
        self._transport: asyncio.SubprocessTransport | None = None
        self._open_pipes = {1, 2}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process was started."""
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Some output."""
        self._log.feed(fd, data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """The engine and all its children have closed this output."""
        if fd in self._open_pipes:
            self._log.end(fd)
        self._open_pipes.discard(fd)
        if not self._open_pipes:
            self.output_ended.set()

    def process_exited(self) -> None:
        """The kernel says that the process ended."""
        code = self._transport.get_returncode() if self._transport else None
        if not self.exited.done():
            self.exited.set_result(code if code is not None else -signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Signal the whole group; nothing if it is gone."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def gone(self) -> int:
        """Wait until the engine and every process of its group are gone. Returns the engine's exit code."""
        code = await self.exited
        self.signal(signal.SIGKILL)
        while _lives(self.pid):  # noqa: ASYNC110 - no system tells of the end of a process group
            await asyncio.sleep(_GONE_POLL_S)
        if self._transport:
            self._transport.close()
        return code

    async def end(self, grace_s: float) -> int:
        """SIGTERM, SIGKILL after `grace_s`, and wait until all of it is gone."""
        self.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.shield(self.exited)
        self.signal(signal.SIGKILL)
        return await self.gone()


def _lives(group: int) -> bool:
    """Whether a group has a process that is more than a zombie (in a container nobody may collect those)."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for pid in psutil.pids():
        with suppress(psutil.Error, OSError):
            if os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return True
    return False


async def launch(what: Command, log: EngineLog) -> EngineProcess:
    """Start an engine that ends when this process does. Raises `OSError` if it cannot be started.

    From the main thread only: Linux ties the child's life to the thread that started it.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("engines are started from the main thread: they end with the thread that starts them")
    wrapped = (sys.executable, "-I", "-S", str(_SPAWN), str(os.getpid()), *what.argv)
    _, process = await asyncio.get_running_loop().subprocess_exec(
        _maker(log), *wrapped, env=dict(what.environment), start_new_session=True
    )
    return process


def _maker(log: EngineLog) -> Callable[[], EngineProcess]:
    return lambda: EngineProcess(log)
