"""The devices' figures, read aside from the event loop, each kind by itself: a driver may never answer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from schemas.node import Device
from schemas.topology import HEARTBEAT_S
from worker.accelerators import Accelerator
from worker.accelerators.presence import Presence, gone

log = logging.getLogger(__name__)

T = TypeVar("T")
SAMPLE_LIMIT_S: Final = 10.0
"""A driver that takes longer has its devices marked, and is waited for without holding up the others."""
STUCK: Final = f"its driver has not answered for {SAMPLE_LIMIT_S:g} s"


class Devices:
    """`current` is at most one heartbeat old."""

    def __init__(
        self,
        accelerators: Sequence[Accelerator],
        *,
        limit_s: float = SAMPLE_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.accelerators = accelerators
        self.current: tuple[Device, ...] = ()
        self._reading = asyncio.Lock()
        self._kinds = [_Kind(each, limit_s, clock) for each in accelerators]

    async def read(self) -> None:
        """Read all figures now. Returns within the limit, or twice that where somebody else reads too, whatever
        a driver does."""
        async with self._reading:
            await asyncio.gather(*(kind.read() for kind in self._kinds))
            self.current = tuple(device for kind in self._kinds for device in kind.devices)

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(HEARTBEAT_S)


class _Kind:
    """One accelerator, asked by one thread at a time."""

    def __init__(self, accelerator: Accelerator, limit_s: float, clock: Callable[[], float]) -> None:
        self.devices: tuple[Device, ...] = ()
        self._accelerator = accelerator
        self._limit_s = limit_s
        self._clock = clock
        self._presence = Presence()
        self._asked: asyncio.Future[list[Device]] | None = None
        self._failing = False

    async def read(self) -> None:
        late = self._asked is not None
        self._asked = self._asked or aside(self._accelerator.sample, f"devices-{self._accelerator.backend}")
        # one that was late already is looked at, and not waited for again
        done, _ = await asyncio.wait({self._asked}, timeout=0 if late else self._limit_s)
        if done:
            asked, self._asked = self._asked, None
            self.devices = self._presence.update(self._answer(asked), self._clock())
        elif not late:
            fields = {"event": "driver_stuck", "backend": self._accelerator.backend, "limit_s": self._limit_s}
            log.error("driver_stuck", extra=fields)
            self.devices = tuple(gone(device, STUCK) for device in self.devices)

    def _answer(self, asked: asyncio.Future[list[Device]]) -> list[Device]:
        """What raises has no devices now: they are told of as gone. Said when it begins."""
        error = asked.exception()
        if error is not None and not self._failing:
            fields = {"event": "devices_unreadable", "backend": self._accelerator.backend}
            log.error("devices_unreadable", exc_info=error, extra=fields)
        self._failing = error is not None
        return [] if error is not None else asked.result()


def aside(call: Callable[[], T], name: str) -> asyncio.Future[T]:
    """The result of a call in a thread of its own. Such a thread does not keep the process from ending, as one of the
    event loop's would: a driver that hangs must not hang the worker's stop."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # pyright: ignore[reportArgumentType]  there is a result where there is no error

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # noqa: BLE001  it is handed to whoever waits
            error = raised
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            log.debug("late_answer", extra={"event": "late_answer", "thread": name})

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
