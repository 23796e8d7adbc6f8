"""One engine process, as its worker sees it: through the connection to the minder that is its parent.

The connection tells at once of the engine's end, as well as of the minder's own: it closes then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from worker.enginelog import EngineLog
from worker.launch import Command
from worker.minder import PROTOCOL, frame
from worker.mindersocket import listening, socket_path
from worker.remains import Remains, end_remains, started_at

_MINDER: Final = Path(__file__).with_name("minder.py")
_POLL_S: Final = 0.01
_HELLO_S: Final = 20.0
"""For a minder to start on a busy machine."""
_KILL_S: Final = 5.0
"""From SIGKILL until all is gone; a minder that takes longer does not work any more."""
_HEAD_BYTES: Final = 5


class HoldRefused(Exception):
    """A minder was not there, spoke another protocol, or is held by another worker (`held`). The text says which."""

    def __init__(self, why: str, *, held: bool = False) -> None:
        super().__init__(why)
        self.held = held


@dataclass(frozen=True, slots=True)
class MinderTerms:
    """What a minder is told. Seconds and bytes."""

    grace_s: float = 0.0
    ring_bytes: int = 10 << 20


class EngineProcess(asyncio.Protocol):
    """A running engine. Made by `launch` and `hold`; `exited` resolves with its exit code (negative: a signal)."""

    def __init__(self, log: EngineLog, tag: str, path: Path) -> None:
        loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = loop.create_future()
        self.output_ended = asyncio.Event()
        self.remains = Remains(0, 0.0, tag)
        """By what the engine and what it started are known."""
        self.minder_pid = 0
        self.socket_path = path
        self.minder_lost = False
        """The minder ended before the engine did: how the engine ended nobody knows."""
        self._log = log
        self._held: asyncio.Future[None] = loop.create_future()
        self._over = asyncio.Event()
        self._all_gone = False
        self._unread = b""
        self._transport: asyncio.Transport | None = None
        self._frames: dict[int, Callable[[bytes], None]] = {
            ord("H"): self._hello,
            ord("B"): lambda _: self._refuse("another worker holds it", held=True),
            ord("1"): lambda data: log.feed(1, data),
            ord("2"): lambda data: log.feed(2, data),
            ord("M"): lambda _: log.requests_begin(),
            ord("L"): lambda data: log.lost(int(data)),
            ord("Z"): lambda _: self._output_over(),
            ord("X"): self._exit,
            ord("G"): lambda _: self._gone(),
        }

    @property
    def pid(self) -> int:
        """The engine's."""
        return self.remains.pid

    # -- what the minder says
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Claim it."""
        self._transport = cast(asyncio.Transport, transport)
        self._say(b"A", self.remains.tag.encode())

    def data_received(self, data: bytes) -> None:
        """Some frames, cut anywhere."""
        unread = self._unread + data if self._unread else data
        at = 0
        while len(unread) - at >= _HEAD_BYTES:
            end = at + _HEAD_BYTES + int.from_bytes(unread[at + 1 : at + _HEAD_BYTES], "big")
            if len(unread) < end:
                break
            if (heard := self._frames.get(unread[at])) is not None:
                heard(unread[at + _HEAD_BYTES : end])
            at = end
        self._unread = unread[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        """The minder has ended; if it did not say that all is gone, somebody killed it."""
        self._refuse("its minder does not answer")
        self.minder_lost = not self._all_gone
        if not self.exited.done():
            self.exited.set_result(-signal.SIGKILL)
        self._output_over()
        self._over.set()

    def _hello(self, payload: bytes) -> None:
        protocol, pid = (int(word) for word in payload.split())
        if protocol != PROTOCOL:
            self._refuse("its minder is of another version")
            return
        self.remains = Remains(pid, started_at(pid) or 0.0, self.remains.tag)
        if not self._held.done():
            self._held.set_result(None)

    def _refuse(self, why: str, *, held: bool = False) -> None:
        if not self._held.done():
            self._held.set_exception(HoldRefused(why, held=held))

    def _exit(self, payload: bytes) -> None:
        if not self.exited.done():
            self.exited.set_result(int(payload))

    def _output_over(self) -> None:
        if not self.output_ended.is_set():
            self._log.end(1)
            self._log.end(2)
            self.output_ended.set()

    def _gone(self) -> None:
        self._all_gone = True
        self._over.set()

    # -- what the minder is told
    def signal(self, number: int) -> None:
        """Signal the whole group; nothing if it is gone."""
        self._say(b"S", b"%d" % number)

    def mark_requests(self) -> None:
        """From here on the output may quote requests; whoever reads the minder's ring later knows it too."""
        self._say(b"M")
        self._log.requests_begin()

    def leave(self) -> None:
        """Let go of it: the minder's grace begins, and another worker may take it over."""
        if self._transport is not None:
            self._transport.abort()

    def _say(self, kind: bytes, payload: bytes = b"") -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame(kind, payload))

    # -- waiting
    async def held(self) -> None:
        """Until the minder has said which process it is. Raises `HoldRefused`."""
        try:
            async with asyncio.timeout(_HELLO_S):
                await asyncio.shield(self._held)
        except TimeoutError as error:
            raise HoldRefused(f"its minder said nothing in {_HELLO_S:g} s") from error

    async def gone(self) -> int:
        """Wait until the engine and every process it started are gone. Returns the engine's exit code."""
        code = await asyncio.shield(self.exited)
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_S):
                await self._over.wait()
        if not self._all_gone:
            await self._clear_up()
        await _reaped(self.minder_pid)
        self.socket_path.unlink(missing_ok=True)
        self.leave()
        return code

    async def end(self, grace_s: float) -> int:
        """SIGTERM, SIGKILL after `grace_s`, and wait until all of it is gone."""
        if grace_s > 0:
            self.signal(signal.SIGTERM)
            await self._exits(grace_s)
        self.signal(signal.SIGKILL)
        if not await self._exits(_KILL_S):
            await self._clear_up()
        return await self.gone()

    async def _exits(self, limit_s: float) -> bool:
        await asyncio.wait({self.exited}, timeout=limit_s)
        return self.exited.done()

    async def _clear_up(self) -> None:
        """Without the minder's help. Whoever carries the tag is the engine's or its minder."""
        self._all_gone = True
        await asyncio.to_thread(end_remains, self.remains)
        if not self.exited.done():
            self.exited.set_result(-signal.SIGKILL)


async def _reaped(minder_pid: int) -> None:
    """Collect a minder that was our child; one of an earlier worker is not, and the system collects it."""
    for _ in range(int(_KILL_S / _POLL_S)):
        try:
            if minder_pid == 0 or os.waitpid(minder_pid, os.WNOHANG)[0]:  # noqa: ASYNC222 - WNOHANG does not block
                return
        except ChildProcessError:
            return
        await asyncio.sleep(_POLL_S)


async def launch(what: Command, log: EngineLog, terms: MinderTerms | None = None) -> EngineProcess:
    """Start an engine under a minder of its own, which this process holds. Raises `OSError` if it cannot be started."""
    path = socket_path(what.tag)
    door = listening(path)
    try:
        process = await _connected(path, what.tag, log)
        process.minder_pid = _spawn(what, terms or MinderTerms(), door.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        door.close()
    try:
        await process.held()
    except BaseException as error:
        os.kill(process.minder_pid, signal.SIGKILL)  # a child of ours that nobody has collected: no stranger
        await process.gone()
        if isinstance(error, HoldRefused):
            raise OSError(f"its minder failed: {error}") from error
        raise
    return process


async def hold(path: Path, tag: str, minder_pid: int, log: EngineLog) -> EngineProcess:
    """Take over an engine that runs. Raises `HoldRefused`."""
    try:
        process = await _connected(path, tag, log)
    except OSError as error:
        raise HoldRefused(f"its minder cannot be reached: {error.strerror or error}") from error
    process.minder_pid = minder_pid
    try:
        await process.held()
    except BaseException:
        process.leave()
        raise
    return process


async def _connected(path: Path, tag: str, log: EngineLog) -> EngineProcess:
    loop = asyncio.get_running_loop()
    _, process = await loop.create_unix_connection(lambda: EngineProcess(log, tag, path), str(path))
    return process


def _spawn(what: Command, terms: MinderTerms, door: int) -> int:
    """Not through asyncio or subprocess: both kill or mourn a child that is left behind on purpose."""
    order = {"grace_s": f"{terms.grace_s:g}", "ring_bytes": str(terms.ring_bytes)} | what.confinement.order()
    words = [f"{name}={value}" for name, value in order.items()]
    argv = [sys.executable, "-I", "-S", str(_MINDER), *words, "--", *what.argv]
    quiet = [(os.POSIX_SPAWN_OPEN, out, os.devnull, os.O_WRONLY, 0) for out in (1, 2)]
    return os.posix_spawn(
        sys.executable,
        argv,
        what.environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, door, 0), *quiet],
        setsigmask=(),
        setsigdef=(signal.SIGPIPE,),
    )
