"""The models on this node's disks: what brings them, keeps them, serves them and takes them away, put together.

A disk that hangs or refuses holds up nothing else: requests for models of the settings are served meanwhile, and the
store is tried again. Tasks are taken once it is open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from bus.kv import Bucket
from worker.copies import Copies
from worker.copying import Parts
from worker.copynews import CopyNews
from worker.keeper import Keeper
from worker.sources import Source, SourceError, find_source
from worker.sources.asking import Patience
from worker.sources.http import Web
from worker.sources.hub import Hub
from worker.sources.s3 import ObjectStore
from worker.sources.secrets import NodeSecrets
from worker.store.catalogue import merged
from worker.store.manifest import Copy
from worker.store.store import Store
from worker.surroundings import Surroundings
from worker.tasks.inbox import TaskInbox
from worker.tasks.part import build_tasks
from worker.tasks.runner import Runner
from worker.transfer.cooldown import Cooldown
from worker.transfer.fetcher import Fetcher

log = logging.getLogger(__name__)

OPEN_AGAIN_S: Final = 15.0
STATE_LABEL: Final = "model."
"""Of the labels that tell of copies: `model.<name>=Ready`."""


class Library:
    """Owner of the store, its copies, the downloads and the tasks. `labels` are this node's, without those of copies;
    `changed` is called when a heartbeat would tell something else."""

    def __init__(
        self,
        here: Surroundings,
        keeper: Keeper,
        *,
        labels: Mapping[str, str],
        changed: Callable[[], None],
        repair: Callable[[], Awaitable[None]],
    ) -> None:
        settings, bus = here.settings, here.bus
        self._here = here
        self._keeper = keeper
        self._own = tuple(settings.models if here.binary else ())
        self._labels = dict(labels)
        self._sources = dict[str, Source]()
        self.opened = asyncio.Event()
        """The store can be used."""
        self.trouble: str | None = None
        """Why it cannot."""
        self._fetcher = Fetcher(settings.downloads, cooldown=Cooldown(settings.node))
        self._fetcher.cooldown.share(Bucket(bus, bus.names.bucket_leases), bus.names)
        self._shared = self._sharing()
        self.news = CopyNews(bus, settings.node, changed)
        self.copies = self._copies()
        self._inbox, self.runner = self._tasks(repair)

    def _copies(self) -> Copies:
        settings = self._here.settings
        self.store = Store(settings.models_folder, settings.store, engine_paths=self._engine_paths)
        return Copies(
            settings.node,
            self.store,
            Parts(self._fetcher, NodeSecrets(settings.state_folder, settings.secrets)),
            settings.downloads,
            publish=self.news.tell,
            catalogue=self._served,
            find=self._find,
        )

    def _tasks(self, repair: Callable[[], Awaitable[None]]) -> tuple[TaskInbox, Runner]:
        here = self._here
        return build_tasks(
            here.bus,
            here.settings.node,
            self.copies,
            self._keeper,
            tasks=here.tasks,
            labels=self.labels,
            repair=repair,
            tell=here.events.tell,
            capacity=here.settings.downloads.num_download_worker,
        )

    def labels(self) -> Mapping[str, str]:
        """The node's labels, with one for each copy."""
        copies = self.copies.states().items()
        return self._labels | {f"{STATE_LABEL}{model}": record.state for model, record in copies}

    # -- life --------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Begin to open the store, and take tasks once it is open."""
        self._here.tasks.start_vital("library", self._run())

    async def _run(self) -> None:
        await self._open()
        self.copies.begin()
        self.opened.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.news.run(self.copies.tell_all), name="copies news")
            group.create_task(self.copies.run(), name="copies")
            group.create_task(self._inbox.start(), name="task inbox")

    async def _open(self) -> None:
        while True:
            try:
                await self.store.open()
                self.trouble = None
                return
            except SourceError as error:
                if self.trouble != error.message:
                    log.error("store_unusable", extra={"event": "store_unusable", "error": error.message})
                    self._here.events.tell("store_unusable", reason=error.message)
                self.trouble = error.message
                await asyncio.sleep(OPEN_AGAIN_S)

    def close(self) -> None:
        """Take no task any more; what runs goes on."""
        self._inbox.close()

    async def stop(self) -> None:
        """Give back what runs; what has come of the files stays for the next start. Safe to call twice."""
        await self._inbox.stop()
        await self.copies.stop()
        self._fetcher.close()

    # -- what the parts ask ------------------------------------------------------------------------------------------
    def _served(self, copies: Iterable[Copy]) -> None:
        """The copies are these now."""
        if self._here.binary is not None:
            self._keeper.replace(merged(self._own, copies))

    def _engine_paths(self) -> Iterable[Path]:
        """All files that engines have been given."""
        for engine in self._keeper.engines.values():
            yield engine.spec.path
            yield from (Path(value) for value in engine.spec.flags.values() if isinstance(value, str) and "/" in value)

    def _find(self, scheme: str) -> Source:
        """One of each kind, which all downloads share."""
        if scheme not in self._sources:
            self._sources[scheme] = find_source(scheme, self._shared)
        return self._sources[scheme]

    def _sharing(self) -> dict[str, Source]:
        """Our own sources, with the node's settings, connections and cool-downs."""
        downloads, quiet = self._here.settings.downloads, self._fetcher.cooldown
        hub = Hub(Patience(downloads.hf_max_retries, downloads.hf_retry_interval_s, quiet=quiet))
        objects = ObjectStore(Patience(downloads.download_retry, downloads.retry_interval_s, quiet=quiet))
        web = Web(self._fetcher.client, tries=downloads.download_retry, interval_s=downloads.retry_interval_s)
        return {"hf": hub, "s3": objects, "oci": objects, "http": web, "https": web}
