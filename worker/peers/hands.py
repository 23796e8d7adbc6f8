"""A few threads that stay, for the many short calls to the disk: to start a thread for each holds up the event loop
longer than most calls take. They do not keep the process from ending, as a disk may never answer."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")
COUNT: Final = 6


class Hands:
    """Calls wait for their turn while all threads are busy, for ever behind a disk that hangs."""

    def __init__(self, name: str, count: int = COUNT) -> None:
        self._name = name
        self._count = count
        self._todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started = 0

    def do(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """The result of a call in one of the threads. Cancelled, it leaves the call to itself."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if self._started < self._count:
            self._started += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._started}", daemon=True).start()
        self._todo.put(lambda: _settle(loop, future, call))
        return future

    def _run(self) -> None:
        while True:
            self._todo.get()()


def _settle(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], call: Callable[[], Any]) -> None:
    try:
        result, error = call(), None
    except Exception as raised:  # noqa: BLE001  it is handed to whoever waits
        result, error = None, raised

    def tell() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    if not loop.is_closed():
        loop.call_soon_threadsafe(tell)
