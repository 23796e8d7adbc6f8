"""The minder keeps the last of an engine's output, never holds the engine up, and sends nobody away too early."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from worker.enginelog import EngineLog
from worker.launch import Command
from worker.minder import Holder, Ring, frame
from worker.process import EngineProcess, HoldRefused, MinderTerms, hold, launch

ENVIRONMENT = {"PATH": os.environ["PATH"], "PUNA_ENGINE_TAG": ""}


def order(tag: str, script: str) -> Command:
    return Command((sys.executable, "-S", "-c", script), ENVIRONMENT | {"PUNA_ENGINE_TAG": tag}, 1, "", tag)


def test_the_ring_is_bounded_and_remembers_that_requests_began() -> None:
    ring = Ring(5000)
    ring.add(frame(b"1", b"early"))
    ring.add(frame(b"M"))
    for number in range(1000):
        ring.add(frame(b"1", b"line %d\n" % number))
    assert ring.bytes <= 5000
    assert ring.marked
    assert ring.frames[-1] == frame(b"1", b"line 999\n")
    assert ring.lost_bytes > 4000


class Link:
    """A connection that takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""

    def send(self, data: bytes) -> int:
        if self.room == 0:
            raise BlockingIOError
        part = data[: self.room]
        self.room -= len(part)
        self.taken += part
        return len(part)


def test_a_holder_that_reads_too_slowly_is_told_how_much_it_missed() -> None:
    ring = Ring(2000)
    link = Link(10)
    holder = Holder(link, ring, frame(b"H", b"1 7"))  # type: ignore[arg-type]
    for number in range(100):
        ring.add(frame(b"1", b"%03d" % number))
        holder.send()
    assert ring.bytes <= 2000
    link.room = 1 << 20
    holder.send()
    assert not holder.behind
    lost = link.taken.index(b"L")
    told = int(link.taken[lost + 5 : lost + 5 + int.from_bytes(link.taken[lost + 1 : lost + 5], "big")])
    assert told + 3 * link.taken.count(frame(b"1", b"000")[:5]) == 300
    assert link.taken.endswith(frame(b"1", b"099"))


async def test_an_engine_that_ends_at_once_still_tells_its_code_and_its_words() -> None:
    log = EngineLog()
    process = await launch(order("aa01", "import sys; print('last words'); sys.exit(3)"), log)
    assert await process.gone() == 3
    assert log.tail(5) == ["last words"]
    assert not process.socket_path.exists()


async def test_a_chatty_engine_is_not_held_up_by_a_worker_that_does_not_read(tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = f"import sys\nfor _ in range(40): sys.stdout.write('x' * 99999 + chr(10))\nopen({str(done)!r}, 'w')"
    process = await launch(
        order("aa02", script + "\nimport time; time.sleep(60)"), EngineLog(), MinderTerms(30, 1 << 17)
    )
    assert process._transport is not None
    process._transport.pause_reading()
    async with asyncio.timeout(10):
        while not done.exists():
            await asyncio.sleep(0.01)
    minder = psutil.Process(process.minder_pid)
    assert minder.memory_info().rss < 40 << 20
    process._transport.resume_reading()
    await process.end(0)


async def test_output_of_before_is_read_back_by_the_next_holder_with_its_privacy() -> None:
    script = "import sys, time\nprint('before', flush=True)\nsys.stdin.read()\ntime.sleep(60)"
    first_log, log = EngineLog(), EngineLog()
    process = await launch(order("aa03", script), first_log, MinderTerms(30))
    async with asyncio.timeout(5):
        while not first_log.tail(1):
            await asyncio.sleep(0.01)
    process.mark_requests()
    with pytest.raises(HoldRefused, match="another worker"):
        await hold(process.socket_path, "aa03", process.minder_pid, EngineLog())
    process.leave()
    again = await _held_soon(process, log)
    async with asyncio.timeout(5):
        while not (log.tail(9) == ["before"] and log._private):
            await asyncio.sleep(0.01)
    assert again.pid == process.pid
    assert await again.end(0) == -9


async def _held_soon(process: EngineProcess, log: EngineLog) -> EngineProcess:
    """The minder sees the end of the first connection a moment later."""
    until = time.monotonic() + 5
    while True:
        try:
            return await hold(process.socket_path, process.remains.tag, process.minder_pid, log)
        except HoldRefused:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


async def test_an_engine_that_is_ended_as_it_begins_does_not_miss_the_signal() -> None:
    """Between fork and exec it is still deaf as its minder is: a signal of that time must not be lost."""
    for number in range(10):
        process = await launch(order(f"early{number}", "import time; time.sleep(600)"), EngineLog())
        assert await process.end(grace_s=30) == -signal.SIGTERM
