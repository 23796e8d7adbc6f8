"""Threads for what blocks: one a call; none keeps the process from ending, as a disk may never answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


class Threads(Executor):
    """An executor that lends a daemon thread to each call; how many there are is up to the callers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Begin a call."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001  it is handed to whoever waits
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """The result of a call. Cancelled, it leaves the call to itself."""
        return await asyncio.get_running_loop().run_in_executor(self, lambda: call(*args))
