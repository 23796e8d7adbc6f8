"""The models on this node's disks: what brings them, keeps them, serves them and takes them away, put together.

A disk that hangs or refuses holds up nothing else: requests for models of the settings are served meanwhile, and the
store is tried again. Tasks are taken once it is open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from bus.kv import Bucket
from schemas.model import CopyRecord, Wanted
from schemas.subjects import LABEL_OF_COPY
from worker.copies import Copies
from worker.copyevents import CopyEvents
from worker.copying import Parts
from worker.copymetrics import CopiesNow, CopyMetrics
from worker.copynews import CopyNews
from worker.desired.part import Desired, Places
from worker.desired.reconciler import Here
from worker.desired.stagger import stagger_s
from worker.desired.variants import W, chosen, machine
from worker.fitting import why_never
from worker.keeper import Keeper
from worker.labels import hardware_labels
from worker.peers.copies import Shelf
from worker.peers.metrics import PeerMetrics, UploadsNow
from worker.peers.peers import Peers
from worker.shelving import Shelving
from worker.sources import Listing, Source, SourceError, find_source
from worker.sources.asking import Patience
from worker.sources.http import Web
from worker.sources.hub import Hub
from worker.sources.s3 import ObjectStore
from worker.sources.secrets import NodeSecrets
from worker.store.catalogue import merged
from worker.store.errors import NeverFits
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


class Library:
    """Owner of the store, its copies, the downloads, the tasks and desired state. `labels` are this node's, without
    those of its hardware and its copies; `changed` is called when a heartbeat would tell something else."""

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
        self._devices = here.devices.current
        """As they were at the start: a card that fails for a while changes nothing about what belongs here."""
        self._labels = {**labels, **hardware_labels(self._devices, engine=here.binary is not None)}
        self._sources = dict[str, Source]()
        self.opened = asyncio.Event()
        """The store can be used."""
        self.trouble: str | None = None
        """Why it cannot."""
        self._events = CopyEvents(here.events.tell, self.opened.is_set)
        self._fetcher = Fetcher(settings.downloads, cooldown=Cooldown(settings.node))
        self._fetcher.cooldown.share(Bucket(bus, bus.names.bucket_leases), bus.names)
        self._metrics = CopyMetrics(here.metrics.registry, settings.nats.prefix, here.metrics.model)
        self._fetcher.cooldown.on_begin = self._metrics.throttled
        self.peers = self._among_peers()
        self._shared = self._sharing()
        self.news = CopyNews(
            bus,
            settings.node,
            changed,
            repair=repair,
            counted=self._metrics.asked,
            resync_s=settings.desired.kv_sync_interval_s,
        )
        self.copies = self._copies()
        keeper.on_used = self.copies.used
        self._desired = self._wanted(repair)
        self._inbox, self.runner = self._tasks(repair)
        self.shelf = self._shelving()
        here.metrics.add(CopiesNow(self.shelf))
        here.metrics.add(UploadsNow(lambda: self.peers.uploads.active))

    def _among_peers(self) -> Peers:
        here, settings = self._here, self._here.settings
        return Peers(
            here.bus,
            settings.node,
            settings.peers,
            self._fetcher,
            roots=(settings.models_folder, *(each.path for each in settings.store.shared_roots)),
            shelf=Shelf(lambda: self.store.copies(), lambda: self.copies.states(), self.opened.is_set),
            advertise=settings.http.advertise,
            tasks=here.tasks,
            tell=here.events.tell,
            watch=PeerMetrics(here.metrics.registry),
        )

    def _copies(self) -> Copies:
        settings = self._here.settings
        self.store = Store(settings.models_folder, settings.store, engine_paths=self._engine_paths)
        return Copies(
            settings.node,
            self.store,
            Parts(self.peers.fetcher, NodeSecrets(settings.state_folder, settings.secrets), self._check_fits),
            settings.downloads,
            publish=self._told,
            catalogue=self._served,
            protected=lambda: self._desired.reconciler.protected(),
            find=self._find,
            choose=self._choose,
            watch=self._metrics,
        )

    def _wanted(self, repair: Callable[[], Awaitable[None]]) -> Desired:
        settings, here = self._here.settings, self._here
        state = settings.state_folder / "desired"
        beside = settings.store.models_root_mode != "ro"
        longest_s = settings.downloads.startup_stagger_max_s
        return Desired(
            here.bus,
            Here(settings.node, self.labels, self._choose, self.store.copies, self.copies.states),
            self.copies,
            Places(settings.models_folder / "desired" if beside else state / "records", state),
            settings.desired,
            tasks=here.tasks,
            begin_at=time.monotonic() + stagger_s(settings.node, longest_s),
            repair=repair,
            tell=here.events.tell,
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
            progress_s=here.settings.downloads.progress_interval_s,
            wishes=self._desired.wishes,
        )

    def labels(self) -> Mapping[str, str]:
        """The node's labels, with one for each copy."""
        copies = self.copies.states().items()
        return self._labels | {f"{LABEL_OF_COPY}{model}": record.state for model, record in copies}

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
            group.create_task(self._desired.run(), name="desired state")

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
        """Take no task any more, and begin nothing that a record wants; what runs goes on."""
        self._inbox.close()
        self._desired.reconciler.close()

    async def stop(self) -> None:
        """Give back what runs; what has come of the files stays for the next start. Safe to call twice."""
        await self._inbox.stop()
        await self._desired.reconciler.stop()
        await self.copies.stop()
        self.peers.stop()
        self._fetcher.close()

    def _shelving(self) -> Shelving:
        """For health and metrics: what is known of the disks."""
        return Shelving(
            self.store,
            self.copies,
            opened=self.opened.is_set,
            unusable=lambda: self.trouble,
            tasks_waiting=lambda: self.runner.waiting,
        )

    # -- what the parts ask ------------------------------------------------------------------------------------------
    def _told(self, model: str, record: CopyRecord | None) -> None:
        """What is known of a copy now."""
        self.news.tell(model, record)
        if self._events.told(model, record):
            self._desired.reconciler.stir()

    def _choose(self, want: W) -> W:
        """As it is wanted on this node."""
        if not want.variants:
            return want
        return chosen(want, machine(self._devices, self.labels()))

    def _check_fits(self, want: Wanted, listing: Listing) -> None:
        """Raises `NeverFits`."""
        reason = why_never(want, listing, self._devices, self._here.settings)
        if reason is not None:
            raise NeverFits(reason)

    def _served(self, copies: Iterable[Copy]) -> None:
        """The copies are these now."""
        if self._here.binary is not None:
            self._keeper.replace(merged(self._own, copies))

    def _engine_paths(self) -> Iterable[Path]:
        """All files that engines have been given, or may yet be given again."""
        yield from self._keeper.former_paths
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
        own: dict[str, Source] = {"hf": hub, "s3": objects, "oci": objects, "http": web, "https": web}
        return own | {"peer": self.peers.source}
