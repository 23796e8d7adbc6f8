"""Desired state of a node and what it is made of."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bus.connection import Bus
from bus.kv import Bucket, Follower
from bus.watched import Tasks
from schemas.subjects import encode
from worker.desired.nodes import Labels, Nodes
from worker.desired.reconciler import Here, Reconciler
from worker.desired.records import Models
from worker.desired.settings import DesiredSettings
from worker.desired.shelf import Shelf
from worker.desired.works import Copies, Works
from worker.tasks.wishes import ModelWishes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Folders. `records`: of the records of what is here; `state`: of what is this node's alone."""

    records: Path
    state: Path


class Desired:
    """The parts. `run` begins once the copies are known; `begin_at` is the monotonic time of the first download."""

    def __init__(
        self,
        bus: Bus,
        here: Here,
        copies: Copies,
        places: Places,
        settings: DesiredSettings,
        *,
        tasks: Tasks,
        begin_at: float,
        repair: Callable[[], Awaitable[None]],
        tell: Callable[..., None],
        dice: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        names = bus.names
        self._tasks = tasks
        self._settings = settings
        self._models, self._held = Bucket(bus, names.bucket_models), Bucket(bus, names.bucket_copies)
        self._shelf = Shelf(places.records / encode(here.node), places.state)
        self._writing = asyncio.Lock()
        self.nodes = Nodes(
            Bucket(bus, names.bucket_nodes),
            grace_s=settings.node_gone_grace_s,
            keep=self._keep_nodes,
            monotonic=monotonic,
        )
        works = Works(
            copies,
            self._shelf,
            begin_at=begin_at,
            ended=lambda: self.reconciler.stir(),
            revision=lambda model: self.reconciler.revision(model),
            monotonic=monotonic,
        )
        self.reconciler = Reconciler(
            here,
            lambda heard: Follower(self._models, heard, repair=repair),
            Models(self._models, self._held),
            self.nodes,
            self._shelf,
            works,
            settings=settings,
            session=lambda: bus.session,
            tell=tell,
            monotonic=monotonic,
            dice=dice,
        )
        self.wishes = ModelWishes(self._models, self._held, here.node, self.nodes.labels, live=self.nodes.live)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await asyncio.to_thread(self._shelf.open)
        except OSError as error:  # what it knew of the bucket is not known then, and nothing is taken for deleted
            log.error("shelf_unread", extra={"event": "shelf_unread", "error": error.strerror})
        self.nodes.remember(self._shelf.nodes)
        await self.reconciler.run()

    def _keep_nodes(self, nodes: Mapping[str, Labels]) -> None:
        self._tasks.start("note nodes", self._note_nodes(nodes))

    async def _note_nodes(self, nodes: Mapping[str, Labels]) -> None:
        async with self._writing:
            try:
                await self._shelf.keep_nodes(nodes)
            except OSError as error:
                log.error("nodes_not_noted", extra={"event": "nodes_not_noted", "error": error.strerror})
