"""What the service manager hears, by a datagram socket as systemd has one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from web.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.settimeout(5)
        yield listening


def test_the_manager_hears_of_the_start_and_of_how_long_the_end_may_take(manager: socket.socket) -> None:
    notifier = Notifier(manager.getsockname())
    notifier.ready()
    notifier.stopping(40)
    assert manager.recv(100) == b"READY=1"
    assert manager.recv(100) == b"STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000"


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"puna-test-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(5)
        Notifier(f"@{name}").ready()
        assert listening.recv(100) == b"READY=1"


async def test_it_is_heard_only_while_it_lives(manager: socket.socket) -> None:
    lives, looked = [True, False, True], asyncio.Event()

    def look() -> bool:
        if not lives:
            looked.set()
            return False
        return lives.pop(0)

    keeping = asyncio.create_task(Notifier(manager.getsockname(), 0.003).keep_alive(look))
    await asyncio.wait_for(looked.wait(), 10)
    keeping.cancel()
    manager.setblocking(False)
    assert [manager.recv(100), manager.recv(100)] == [b"WATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        manager.recv(100)


def test_children_do_not_inherit_the_manager() -> None:
    environ = {"NOTIFY_SOCKET": "/run/s", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    assert Notifier.from_environ(environ).watchdog_s == 30
    assert environ == {"HOME": "/"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "no number"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)},
    ],
)
async def test_without_a_watchdog_of_ours_nothing_is_told(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environ(environ)
    assert notifier.watchdog_s is None
    notifier.ready()
    await asyncio.wait_for(notifier.keep_alive(lambda: True), 5)


def test_a_manager_that_does_not_listen_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier(str(tmp_path / "nobody"))
    notifier.ready()
    notifier.stopping(1)
    assert [record.getMessage() for record in caplog.records] == ["service_manager_deaf"]
