"""The supervision of `puna up`'s children."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import psutil
import pytest

from gateway.cli import children as module
from gateway.cli.children import Child, Children, restart_delay_s, said_of

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]


class News:
    """What the children told."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, child: Child, text: str) -> None:
        self.lines.put_nowait(text)

    async def next(self) -> str:
        return await asyncio.wait_for(self.lines.get(), 10)


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(module, "RESTART_S", 0.01)


def child(tmp_path, command=SLEEP) -> Child:
    return Child("worker-1", command, os.environ, tmp_path / "logs" / "worker-1.log")


def test_the_delay_before_a_new_start_doubles_up_to_half_a_minute() -> None:
    assert [restart_delay_s(deaths) for deaths in (1, 2, 3, 20)] == [1, 2, 4, 30]


def test_how_a_process_ended_is_said_in_words() -> None:
    assert said_of(3) == "ended with exit code 3"
    assert said_of(-9) == "was killed by SIGKILL"


async def test_a_child_that_is_killed_is_said_and_started_again(tmp_path, quick) -> None:
    news, one = News(), child(tmp_path)
    fleet = Children(news)
    await fleet.start(one)
    fleet.settled()
    first = one.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert f"worker-1 (pid {first}) was killed by SIGKILL" in await news.next()
    assert "started again" in await news.next()
    assert one.pid not in (None, first)
    await fleet.stop((one,))
    assert not psutil.pid_exists(first)


async def test_a_child_that_dies_before_all_is_up_breaks_the_start_and_shows_its_log(tmp_path) -> None:
    one = child(tmp_path, [sys.executable, "-c", "import sys; print('no engine here'); sys.exit(69)"])
    fleet = Children(News())
    await fleet.start(one)
    error = await asyncio.wait_for(fleet.broken, 10)
    assert error.code == 69
    assert "no engine here" in error.message
    await fleet.stop((one,))


async def test_children_that_do_not_listen_are_killed_after_the_grace(tmp_path) -> None:
    one = child(tmp_path, STUBBORN)
    fleet = Children(News())
    await fleet.start(one)
    while "up" not in one.log_tail():
        await asyncio.sleep(0.01)
    started = time.monotonic()
    await fleet.stop((one,), grace_s=0.2)
    assert one.pid is None
    assert 0.2 <= time.monotonic() - started < 5


async def test_a_frozen_child_is_ended_too(tmp_path) -> None:
    one = child(tmp_path)
    fleet = Children(News())
    await fleet.start(one)
    assert one.pid is not None
    os.kill(one.pid, signal.SIGSTOP)
    await asyncio.wait_for(fleet.stop((one,), grace_s=5), 8)
    assert one.pid is None


async def test_a_child_waits_for_its_port(tmp_path, quick) -> None:
    news, one = News(), child(tmp_path)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    one.port = server.sockets[0].getsockname()[1]
    fleet = Children(news)
    await fleet.start(one)
    fleet.settled()
    assert one.pid is not None
    os.kill(one.pid, signal.SIGKILL)
    assert "was killed" in await news.next()
    assert "another program listens" in await news.next()
    server.close()
    await server.wait_closed()
    assert "started again" in await news.next()
    await fleet.stop((one,))
