"""Where tasks come in: the consumer that all nodes share, and the one of this node's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from bus.connection import Bus
from bus.kv import Bucket, Follower
from bus.pull import WorkPull
from schemas import topology
from worker.tasks.runner import Runner

PULLS: Final = 2
"""That stand on each consumer. They are asked for whatever runs: a delete must not wait behind a download, so a
download for which there is no room is given back."""


class TaskInbox:
    """Pulls, and the follower of the records. `repair` makes the topology anew when a part of it is missing."""

    def __init__(
        self, bus: Bus, node: str, runner: Runner, *, ack_wait_s: float, repair: Callable[[], Awaitable[None]]
    ) -> None:
        names = bus.names
        self._pulls = [
            WorkPull(bus, replace(spec, ack_wait_s=ack_wait_s), runner.take, name=spec.durable, repair=repair)
            for spec in (topology.tasks(names), topology.tasks(names, node))
        ]
        self._follower = Follower(Bucket(bus, names.bucket_tasks), runner.changed, repair=repair)
        self._runner = runner

    async def start(self, *, timeout_s: float | None = None) -> None:
        """Take tasks. Raises `BusUnavailable` if the records cannot be read in time; it goes on trying all the same."""
        await self._runner.resume()
        for pull in self._pulls:
            await pull.start()
            pull.want(PULLS)
        await self._follower.start(timeout_s=timeout_s)

    def close(self) -> None:
        """Take nothing more; what runs goes on."""
        for pull in self._pulls:
            pull.want(0)
        self._runner.close()

    async def stop(self) -> None:
        """Take nothing more, and give back what runs. Safe to call twice."""
        self.close()
        for pull in self._pulls:
            await pull.stop()
        await self._runner.stop()
        await self._follower.stop()
