"""Following tasks and copies as they change, until what a command waits for has come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from gateway.cli.records import moment_of, read_record
from schemas.task import TaskRecord

if TYPE_CHECKING:
    from bus.connection import Bus
    from bus.kv import Entry
    from gateway.view import Moment

READ_S: Final = 10.0


class Followed:
    """The fleet and its tasks as they are now; `changed` is set whenever something did."""

    def __init__(self, bus: Bus) -> None:
        self.changed = asyncio.Event()
        self._bus = bus
        self._found: dict[str, Mapping[str, Entry]] = {}

    @property
    def moment(self) -> Moment:
        """Nodes and copies."""
        names = self._bus.names
        nodes, copies, models = (
            self._found.get(each, {}) for each in (names.bucket_nodes, names.bucket_copies, names.bucket_models)
        )
        return moment_of(self._bus, nodes, copies, models)

    def task(self, task: str) -> TaskRecord | None:
        """The record of a task."""
        return read_record(self._found.get(self._bus.names.bucket_tasks, {}).get(task))

    def take(self, bucket: str, entries: Mapping[str, Entry]) -> None:
        """A bucket is like this now."""
        self._found[bucket] = entries
        self.changed.set()

    async def until(self, true: Callable[[], bool], *, timeout_s: float | None = None, at_least_s: float = 1.0) -> bool:
        """Until it is so, looked at when something has changed and every `at_least_s`; False if it is not in time."""
        loop = asyncio.get_running_loop()
        ends_at = None if timeout_s is None else loop.time() + timeout_s
        while not true():
            left_s = at_least_s if ends_at is None else min(at_least_s, ends_at - loop.time())
            if left_s <= 0:
                return False
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self.changed.wait()
        return True


@asynccontextmanager
async def following(bus: Bus) -> AsyncGenerator[Followed]:
    """Followers of all buckets. Raises `BusUnavailable`."""
    from functools import partial

    from bus.kv import Bucket, Follower

    names, followed = bus.names, Followed(bus)
    await standing(bus)
    buckets = (names.bucket_nodes, names.bucket_copies, names.bucket_models, names.bucket_tasks)
    followers = [Follower(Bucket(bus, each), partial(followed.take, each)) for each in buckets]
    try:
        await asyncio.gather(*(each.start(timeout_s=READ_S) for each in followers))
        yield followed
    finally:
        for each in followers:
            await each.stop()


async def standing(bus: Bus) -> None:
    """Make the fleet's streams and buckets where one is missing: no worker has been here yet. What stands is left as
    it is, for a command does not know with how many replicas. Raises `BusUnavailable`."""
    from bus.topology import ensure, stream_info
    from schemas.topology import fleet

    wanted = fleet(bus.names, replicas=bus.settings.replicas)
    needed = [bus.names.stream_tasks, bus.names.stream_dead, *(f"KV_{each.name}" for each in wanted.buckets)]
    if None in await asyncio.gather(*(stream_info(bus, each) for each in needed)):
        await ensure(bus, wanted)
