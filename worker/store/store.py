"""The models on this node's disks.

Whole or not there: a file becomes a blob once its checksum is right, a folder of blobs becomes a copy once its manifest
is there, and a copy is gone once its folder was renamed away. Whatever a worker that ended in between left is put right
by `open`. The layout is in `layout.py`; every change of the disk in `disk.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from worker.sources import Listing, RemoteFile, SourceError
from worker.store import layout
from worker.store.budget import Budget, Evict, Room
from worker.store.describing import Value, described_copy
from worker.store.disk import Disk
from worker.store.errors import NotHere, ReadOnlyRoot
from worker.store.ground import Ground
from worker.store.hubcache import cached, hub_caches
from worker.store.manifest import Copy, Manifest
from worker.store.root import Root, content_of
from worker.store.settings import StoreSettings
from worker.store.space import Reservation
from worker.store.staging import Installing, Staging, check_listing
from worker.store.sweep import Sweep, Swept, retire
from worker.store.use import Use
from worker.store.verifying import OnBytes, Verifier

log = logging.getLogger(__name__)


class Store:
    """Owner of the copies on this node's disks. `engine_paths`: the files that engines have been given; their views
    stay although a newer one is there."""

    def __init__(
        self,
        root: Path,
        settings: StoreSettings,
        *,
        environ: Mapping[str, str] = os.environ,
        engine_paths: Callable[[], Iterable[Path]] = lambda: (),
        step: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        disk = Disk(root, step) if step else Disk(root)
        shared = tuple(Root(Disk(each.path), each.mode) for each in settings.shared_roots)
        self._ground = Ground(Root(disk, settings.models_root_mode), shared, engine_paths)
        self._caches = hub_caches(environ) if settings.use_hub_cache else ()
        self._clock = clock
        self._budget = Budget(self._ground, settings, self.copies)
        self._verifier = Verifier(self._ground, settings.verify_bytes_per_s)
        self._copies: Mapping[str, Copy] = MappingProxyType({})
        self._found: dict[Path, dict[str, Copy]] = {}
        self._hidden: set[str] = set()
        self._suspects: dict[tuple[str, str], tuple[str, ...]] = {}
        self._amended: dict[tuple[str, str], Manifest] = {}
        self._open_views: dict[tuple[str, str], Use] = {}
        self.trouble: str | None = None
        """Why a root could not be looked at the last time; its copies are told as they were."""

    # -- lifetime ----------------------------------------------------------------------------------------------------
    async def open(self) -> Swept:
        """Put right what an earlier worker left, and look what is there. Raises a `SourceError`."""
        ground, swept = self._ground, Swept()
        await ground.do(ground.root.prepare)
        if ground.root.writable:
            async with ground.changing(ground.root):
                swept = await ground.do(self._sweep().run)
            log.info("store_swept", extra={"event": "store_swept", **_fields(swept)})
        await self.refresh()
        return swept

    def _sweep(self) -> Sweep:
        return Sweep(
            self._ground.root,
            now=self._clock(),
            partial_keep_s=self._settings.partial_keep_s,
            in_use=self._ground.in_use(),
        )

    async def close(self) -> None:
        """Wait for changes that are under way. Safe to call twice."""
        await self._ground.settled()

    # -- looking -----------------------------------------------------------------------------------------------------
    def copies(self) -> Mapping[str, Copy]:
        """All copies that this node can serve or mend, by model: a view of now."""
        return self._copies

    async def refresh(self) -> None:
        """Look at the disks again: other workers may share them. What a root had that cannot be looked at now stays
        known. Raises the first `SourceError` when all were tried."""
        troubles = await self._look()
        if troubles:
            raise troubles[0]

    async def _look(self) -> list[SourceError]:
        troubles: list[SourceError] = []
        for root in self._roots:
            try:
                self._found[root.disk.root] = await self._scanned(root)
            except SourceError as error:
                troubles.append(error)
        found: dict[str, Copy] = {}
        for root in reversed(self._roots):
            found |= self._found.get(root.disk.root, {})
        self._show(found)
        self.trouble = troubles[0].message if troubles else None
        return troubles

    async def _scanned(self, root: Root) -> dict[str, Copy]:
        """All copies of a root. What seems to be broken is looked at again once nobody changes anything: a blob may
        just have come anew. Raises a `SourceError`."""
        found = await self._ground.do(root.scan)
        before = self._found.get(root.disk.root, {})
        doubtful = [each for each in found.values() if each.broken and not _is_broken(before.get(each.model))]
        if doubtful and root.writable:
            async with self._ground.changing(root):
                for model in (each.model for each in doubtful):
                    del found[model]
                    copy = await self._ground.do(root.copy, model)
                    found |= {model: copy} if copy is not None else {}
        return found

    @property
    def _roots(self) -> tuple[Root, ...]:
        return (self._ground.root, *self._ground.shared)

    def _show(self, found: Mapping[str, Copy]) -> None:
        shown = {model: copy for model, copy in found.items() if model not in self._hidden}
        for (model, token), bad in self._suspects.items():
            if model in shown and shown[model].token == token:
                shown[model] = replace(shown[model], broken=bad)
        for (model, token), manifest in self._amended.items():
            if model in shown and shown[model].token == token:
                shown[model] = replace(shown[model], manifest=manifest)
        self._copies = MappingProxyType(shown)

    async def probe(self) -> None:
        """That the models' folder is there and can be used. Raises a `SourceError` that says what is wrong."""
        await self._ground.do(self._ground.root.probe)

    async def has_blob(self, sha256: str, size_bytes: int | None = None) -> bool:
        """Whether a content is in the store."""
        return await self._ground.do(self._ground.root.has_blob, sha256, size_bytes)

    async def room(self) -> Room:
        """How much there is."""
        return await self._budget.room()

    # -- in ----------------------------------------------------------------------------------------------------------
    async def begin(self, model: str, listing: Listing, *, fresh: bool = False) -> Staging:
        """Start to install a model. `fresh`: its files are fetched although their contents are here. Raises
        `BadListing`, `ReadOnlyRoot`, or what the disk refused."""
        check_listing(model, listing)
        if not self._ground.root.writable:
            raise ReadOnlyRoot(f"{self._ground.root.disk.root} may not be changed by this node (its mode is ro)")
        await self._ground.do(self._ground.root.check)
        found = {} if listing.in_place else await self._ground.do(self._known, model, listing, fresh)
        return Staging(self._ground, model, listing, found, self._installed, fresh=fresh)

    def _known(self, model: str, listing: Listing, fresh: bool) -> dict[str, str]:
        """What is here, by path. Of a `fresh` one only what has come for it before it was interrupted."""
        root, found = self._ground.root, dict[str, str]()
        for file in listing.files:
            key = layout.partial_key(listing, file)
            known = content_of(root, key)
            begun = root.disk.look((*layout.PARTIAL, key, "placed")) is not None
            if known and (begun or not fresh) and root.has_blob(known, file.size_bytes):
                found[file.path] = known
                if begun:
                    self._ground.parts.mark(key, model)
        return found

    async def candidates(self, listing: Listing, file: RemoteFile) -> list[Path]:
        """Where else on this machine the file may be: shared roots and the user's Hugging Face cache."""
        return await self._ground.do(self._candidates, listing, file)

    def _candidates(self, listing: Listing, file: RemoteFile) -> list[Path]:
        sha256 = layout.known_sha256(file.digest)
        if sha256 is None:
            return []
        shared = [root.disk.path(layout.blob(sha256)) for root in self._ground.shared if root.has_blob(sha256)]
        return [*shared, *cached(self._caches, sha256, listing.ref.place if listing.ref.scheme == "hf" else None)]

    def _installed(self, copy: Copy) -> None:
        self._hidden.discard(copy.model)
        self._suspects.pop((copy.model, copy.token), None)
        self._amended.pop((copy.model, copy.token), None)
        self._found.setdefault(self._ground.root.disk.root, {})[copy.model] = copy
        self._show({**self._copies, copy.model: copy})
        log.info(
            "copy_installed",
            extra={
                "event": "copy_installed",
                "model": copy.model,
                "revision": copy.revision,
                "bytes": copy.manifest.size_bytes,
            },
        )

    async def amend(self, model: str, told: Installing) -> Copy:
        """The files are the right ones: say anew what they are for. Where the root may not be written to this holds
        while this worker lives. Raises `NotHere`, `BadModelFile`, or another `SourceError`."""
        copy = self._copies.get(model)
        if copy is None:
            raise NotHere(f"this node has no copy of {model}")
        changes = {"source": told.source, "want": told.want, "profile": told.profile, "retain": told.retain}
        changes |= {"generation": told.generation, "listing": told.listing}
        config = await self._ground.do(self._config, copy, told.skip_parsing)
        amended = copy.manifest.model_copy(update=changes | {"config": config})
        if amended != copy.manifest:
            if self._root_of(copy).writable:
                await self._ground.whole(self._rewrite(copy, amended))
            else:
                self._amended[model, copy.token] = amended
            copy = replace(copy, manifest=amended)
            self._show({**self._copies, model: copy})
        return copy

    def _config(self, copy: Copy, skip_parsing: bool) -> dict[str, Value]:
        manifest = copy.manifest
        if skip_parsing or manifest.config:
            return {} if skip_parsing else manifest.config
        return described_copy(copy.folder, manifest.main, manifest.files)

    async def _rewrite(self, copy: Copy, amended: Manifest) -> None:
        root = self._root_of(copy)
        place = (*layout.model_folder(copy.model), copy.token, layout.MANIFEST)
        async with self._ground.changing(root):
            await self._ground.note(root, place, amended.model_dump_json(exclude_defaults=True).encode())

    # -- out ---------------------------------------------------------------------------------------------------------
    async def remove(self, model: str, *, retain: bool = False) -> int:
        """Take a model away; with `retain` its files stay, for when it comes again. Returns the bytes that were freed.

        What this node may not delete, or another worker uses, it only stops to serve. A model that is not here is no
        error.
        """
        self._hidden.discard(model)
        freed = 0
        if self._ground.root.deletable:
            freed += await self._ground.whole(self._remove(self._ground.root, model, retain=retain))
        elif self._ground.root.writable and not retain:
            await self._ground.do(self._forget, model)
        for root in self._ground.shared:
            if root.deletable and await self._ground.do(root.copy, model) is not None:
                freed += await self._ground.whole(self._remove(root, model, retain=retain))
        await self._look()
        if model in self._copies:
            self._hidden.add(model)
            self._show(self._copies)
        log.info("copy_removed", extra={"event": "copy_removed", "model": model, "bytes": freed, "retain": retain})
        return freed

    async def _remove(self, root: Root, model: str, *, retain: bool) -> int:
        ground = self._ground
        async with ground.changing(root):
            copy = await ground.do(root.copy, model)
            if copy is not None and not await ground.do(ground.uses.nobody_else, root, (model, copy.token)):
                return 0
            if retain and copy is not None and not copy.manifest.in_place:
                note = copy.manifest.model_dump_json(exclude_defaults=True).encode()
                await ground.note(root, layout.retained(model), note)
            return await ground.do(self._throw, root, model, retain)

    def _throw(self, root: Root, model: str, retain: bool) -> int:
        freed = root.retained_blobs(model) if not retain else set[str]()
        for view in root.views(model):
            freed |= view.manifest.blobs
        root.throw(layout.model_folder(model))
        if not retain:
            root.disk.clear(layout.retained(model))
            freed |= self._forget(model) if root is self._ground.root else set()
        return root.release(freed, self._ground.held)

    def _forget(self, model: str) -> set[str]:
        """Have the parts go that nobody else wants. Returns the contents that they stood for."""
        parts = self._ground.parts
        found = (parts.forget(model, key) for key in parts.wanted(model))
        return {content for content in found if content is not None}

    # -- use ---------------------------------------------------------------------------------------------------------
    async def use(self, model: str) -> Use:
        """Keep the model's current files for as long as the handle is held. Raises `NotHere`."""
        copy = self._copies.get(model)
        if copy is None:
            raise NotHere(f"this node has no copy of {model}")
        root = self._root_of(copy)
        adding = asyncio.ensure_future(self._ground.do(self._ground.uses.add, root, (model, copy.token)))
        try:
            used = await asyncio.shield(adding)
        except asyncio.CancelledError:
            adding.add_done_callback(lambda done: done.result().release())
            raise
        await self.used(model)
        return used

    async def used(self, model: str) -> None:
        """Note that the model is in use now: the least recently used one goes first."""
        copy = self._copies.get(model)
        if copy is None:
            return
        now = self._clock()
        self._show({**self._copies, model: replace(copy, used_at=now)})
        root = self._root_of(copy)
        if root.writable:
            place = (*layout.model_folder(model), copy.token, layout.MANIFEST)
            await self._ground.do(root.disk.touch, place, now)

    def _root_of(self, copy: Copy) -> Root:
        return next(root for root in self._roots if copy.folder.is_relative_to(root.disk.root))

    async def hold_open(self) -> None:
        """Mark the views that engines have open for other workers of the same roots, and those no more that they have
        left. Old ones that nobody uses any more go then."""
        views = {
            view: root for path in self._ground.open_paths() for root in self._roots if (view := root.view_of(path))
        }
        for view, root in views.items():
            if view not in self._open_views:
                self._open_views[view] = await self._ground.do(self._ground.uses.add, root, view)
        left = [view for view in self._open_views if view not in views]
        for view in left:
            self._open_views.pop(view).release()
        if left:
            await self.tidy()

    async def tidy(self) -> int:
        """Let old revisions go that nobody uses any more. Returns how many went."""
        if not self._ground.root.deletable:
            return 0
        return await self._ground.whole(self._tidy())

    async def _tidy(self) -> int:
        async with self._ground.changing(self._ground.root):
            return await self._ground.do(self._retire_all, self._ground.in_use())

    def _retire_all(self, in_use: Callable[[str, str], bool]) -> int:
        root, gone = self._ground.root, 0
        for model in list(self._copies):
            views = root.views(model)
            if len(views) > 1:
                blobs = {blob for view in views for blob in view.manifest.blobs}
                gone += retire(root, model, in_use)
                root.release(blobs, self._ground.held)
        return gone

    # -- verify ------------------------------------------------------------------------------------------------------
    async def verify(self, model: str, on_bytes: OnBytes | None = None) -> tuple[str, ...]:
        """Read all files of a model again. Returns those whose content is wrong; they are not served any more, and are
        fetched anew by the next install. Raises `NotHere`. Cancelled, it stops reading."""
        copy = self._copies.get(model)
        if copy is None:
            raise NotHere(f"this node has no copy of {model}")
        root = self._root_of(copy)
        bad = await self._verifier.bad_files(root, copy, on_bytes)
        if bad:
            if not root.deletable and not copy.manifest.in_place:
                self._suspects[model, copy.token] = bad
            log.error("copy_corrupt", extra={"event": "copy_corrupt", "model": model, "files": list(bad)})
            await self._look()
        return bad

    # -- room --------------------------------------------------------------------------------------------------------
    async def reserve(self, bytes_: int, *, protected: Collection[str] = (), evict: Evict | None = None) -> Reservation:
        """Promise room for a download; makes some by the water marks if need be. Raises `NoSpace`, with the numbers."""
        return await self._budget.reserve(bytes_, protected=protected, evict=evict or self._evict)

    async def collect(self, *, protected: Collection[str] = (), evict: Evict | None = None) -> list[str]:
        """Above the high mark: let models go down to the low one. Returns which."""
        return await self._budget.collect(protected=protected, evict=evict or self._evict)

    async def _evict(self, model: str) -> None:
        await self.remove(model)


def _is_broken(copy: Copy | None) -> bool:
    return copy is not None and bool(copy.broken)


def _fields(swept: Swept) -> dict[str, int]:
    return {name: getattr(swept, name) for name in ("half_views", "old_views", "partials", "orphans", "freed_bytes")}
