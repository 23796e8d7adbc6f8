"""A node that takes tasks with the real runner and does them by writing lines into a file, for tests.

`python -P tests/fakes/taskworker.py NATS_URL NODE FOLDER [ACK_WAIT_S]` runs until its stdin ends. What it does is told
by the model's name: `fail…` fails and may be tried again, `gone…` is not there, `hold…` goes on until the file `go` is
in the folder.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bus.connection import Bus
from bus.settings import NatsSettings
from bus.topology import ensure
from bus.watched import Tasks
from schemas.errors import ModelNotFound
from schemas.model import CopyProgress, Wanted
from schemas.topology import fleet
from worker.sources import NotThere, SourceError, Unreachable
from worker.store.errors import Removed
from worker.tasks.part import build_tasks

ACK_WAIT_S = 2.0


class Copies:
    """Files that are lines in `done.log`: `<node> <what> <model>`."""

    def __init__(self, node: str, folder: Path) -> None:
        self.node = node
        self.folder = folder
        self.models: dict[str, Any] = {}
        self.changed = asyncio.Event()
        self.removed: set[str] = set()
        self.failing: dict[str, SourceError] = {}

    def note(self, what: str, model: str) -> None:
        with (self.folder / "done.log").open("a") as out:
            out.write(f"{self.node} {what} {model}\n")

    def states(self) -> Mapping[str, object]:
        return self.models

    async def ensure(self, want: Wanted, on_progress: Any = None, *, again: bool = False, patient: bool = True) -> None:
        model = want.model
        self.note("begin", model)
        try:
            await self._hold(model, on_progress)
        except asyncio.CancelledError:
            self.note("stopped", model)
            raise
        if model in self.failing:
            raise self.failing[model]
        if model.startswith("fail"):
            raise Unreachable("no connection to https://hub.test")
        if model.startswith("gone"):
            raise NotThere("no such repository")
        self.models[model] = want
        self.note("again" if again else "end", model)

    async def _hold(self, model: str, on_progress: Any) -> None:
        done = 0
        while model.startswith("hold") and not (self.folder / "go").exists():
            done += 1
            on_progress(CopyProgress(phase="fetching", bytes_total=1000, bytes_done=done))
            await asyncio.sleep(0.01)
            if model in self.removed:
                self.removed.discard(model)
                self.note("stopped", model)
                raise Removed(f"{model} was deleted")

    async def verify(self, model: str, on_progress: Any = None) -> None:
        self.note("verify", model)

    async def remove(self, model: str, *, retain: bool = False) -> None:
        self.note("retain" if retain else "remove", model)
        self.removed.add(model)
        self.models.pop(model, None)


class Engine:
    async def ensure_ready(self, deadline_s: float) -> None:
        """It is."""


class Engines:
    """One engine a model of `copies`."""

    def __init__(self, copies: Copies) -> None:
        self.copies = copies
        self.loaded: dict[str, Engine] = {}

    def serves(self, model: str) -> bool:
        return model in self.copies.models

    def of(self, model: str) -> list[Engine]:
        return [self.loaded[model]] if model in self.loaded else []

    async def load(self, model: str, devices: Any = ()) -> Engine:
        self.copies.note("load", model)
        return self.loaded.setdefault(model, Engine())

    async def unload(self, *, model: str | None = None, engine: str | None = None, reason: str) -> list[str]:
        if model not in self.loaded:
            raise ModelNotFound(f"no engine of {model}")
        self.copies.note("unload", str(model))
        del self.loaded[str(model)]
        return ["engine-1"]


class Node:
    """One node on one bus."""

    def __init__(self, bus: Bus, node: str, folder: Path, **options: Any) -> None:
        self.bus = bus
        self.copies = Copies(node, folder)
        self.engines = Engines(self.copies)
        self.tasks = Tasks()
        self.told: list[str] = []
        self.labels = {"node": node} | options.pop("labels", {})
        self.inbox, self.runner = build_tasks(
            bus,
            node,
            self.copies,
            self.engines,
            tasks=self.tasks,
            labels=lambda: self.labels,
            repair=self.repair,
            tell=lambda kind, **_: self.told.append(kind),
            **({"capacity": 2, "ack_wait_s": ACK_WAIT_S} | options),
        )

    async def repair(self) -> None:
        await ensure(self.bus, fleet(self.bus.names))

    async def start(self) -> None:
        self.bus.on_session(self.repair)
        await self.repair()
        await self.inbox.start(timeout_s=10)

    async def stop(self) -> None:
        await self.inbox.stop()
        await self.tasks.stop()


async def main(url: str, node: str, folder: str, ack_wait_s: str = f"{ACK_WAIT_S}") -> None:
    bus = await Bus.connect(NatsSettings(url=url), name=node)
    one = Node(bus, node, Path(folder), ack_wait_s=float(ack_wait_s))
    await one.start()
    print(json.dumps({"node": node}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await one.stop()
    await bus.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(main(*sys.argv[1:5]))
