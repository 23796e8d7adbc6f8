"""What is put right when a store is opened: whatever a worker that ended at any step left half done."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from worker.store import layout
from worker.store.disk import TEMPORARY, Entry, Place
from worker.store.root import References, Root, content_of

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Swept:
    """What went."""

    half_views: int = 0
    old_views: int = 0
    partials: int = 0
    orphans: int = 0
    freed_bytes: int = 0


class Sweep:
    """One pass over a root. The caller holds its lock. `in_use` tells of views that engines still have open."""

    def __init__(self, root: Root, *, now: float, partial_keep_s: float, in_use: Callable[[str, str], bool]) -> None:
        self._root = root
        self._disk = root.disk
        self._now = now
        self._keep_s = partial_keep_s
        self._in_use = in_use
        self.swept = Swept()

    def run(self) -> Swept:
        """Blocks. Raises `OSError`."""
        if self._root.writable:
            self._temporaries(())
            self._temporaries(layout.RETAINED)
            self._each_model()
        if self._root.deletable:
            for entry in self._disk.entries(layout.TRASH):
                self._disk.clear((*layout.TRASH, entry.name))
            needed = self._root.references()
            kept = self._partials(needed)
            self._orphans(needed, kept)
        return self.swept

    def _temporaries(self, folder: Place, *, deep: bool = False) -> None:
        for entry in self._disk.entries(folder):
            if entry.name.startswith(TEMPORARY):
                self._disk.clear((*folder, entry.name))
            elif deep and entry.kind == "folder":
                self._temporaries((*folder, entry.name), deep=True)

    # -- views -------------------------------------------------------------------------------------------------------
    def _each_model(self) -> None:
        for entry in self._disk.entries(layout.MODELS):
            model = layout.model_of(entry.name) if entry.kind == "folder" else None
            if model is not None:
                self._one_model(model)

    def _one_model(self, model: str) -> None:
        folder = layout.model_folder(model)
        self._temporaries(folder)
        self._root.heal(model)
        for entry in self._disk.entries(folder):
            if entry.kind == "folder" and layout.is_revision(entry.name):
                self._one_view((*folder, entry.name))
        best = self._root.copy(model)
        if best is not None:
            self._root.switch(model, best.token)
            self.swept.old_views += retire(self._root, model, self._in_use) if self._root.deletable else 0
        elif not any(entry.kind == "folder" for entry in self._disk.entries(folder)) and self._root.deletable:
            self._root.throw(folder)

    def _one_view(self, view: Place) -> None:
        if self._disk.look((*view, layout.MANIFEST)) is None:
            self.swept.half_views += 1
            self._root.throw(view) if self._root.deletable else self._disk.clear(view)
        else:
            self._temporaries(view, deep=True)

    # -- contents ----------------------------------------------------------------------------------------------------
    def _partials(self, needed: References) -> set[str]:
        """Clear what is done with or stale. Returns the contents that unfinished downloads have in the store."""
        kept: set[str] = set()
        for entry in self._disk.entries(layout.PARTIAL):
            place = (*layout.PARTIAL, entry.name)
            held = take_part(self._root, entry.name)
            if held is None:
                kept |= self._content(entry)
                continue
            try:
                if self._done_with(entry, needed):
                    self.swept.partials += 1
                    self._disk.clear(place)
                else:
                    self._temporaries(place)
                    kept |= self._content(entry)
            finally:
                os.close(held)
        return kept

    def _content(self, entry: Entry) -> set[str]:
        found = content_of(self._root, entry.name)
        return {found} if found else set()

    def _done_with(self, entry: Entry, needed: References) -> bool:
        inside = [each for each in self._disk.entries((*layout.PARTIAL, entry.name)) if each.name != "lock"]
        newest = max((each.modified_at for each in inside), default=entry.modified_at)
        if entry.kind != "folder" or self._now - newest > self._keep_s or self._content(entry) & needed.blobs:
            return True
        return not any(each.name == "data" for each in inside) and not self._blobs_here(entry)

    def _blobs_here(self, entry: Entry) -> set[str]:
        return {sha256 for sha256 in self._content(entry) if self._root.has_blob(sha256)}

    def _orphans(self, needed: References, kept: set[str]) -> None:
        if needed.unclear:
            log.error("references_unclear", extra={"event": "references_unclear", "notes": needed.unclear[:8]})
            return
        for entry in self._disk.entries(layout.BLOBS):
            sha256 = layout.blob_of(entry.name)
            if sha256 is not None and sha256 not in needed.blobs and sha256 not in kept:
                self.swept.orphans += 1
                self.swept.freed_bytes += entry.size_bytes
                self._disk.unlink((*layout.BLOBS, entry.name))


def take_part(root: Root, key: str) -> int | None:
    """The right to work on a part; None while somebody else has it."""
    try:
        return root.disk.lock((*layout.PARTIAL, key, "lock"))
    except OSError:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def retire(root: Root, model: str, in_use: Callable[[str, str], bool]) -> int:
    """Throw away the model's older views that nobody uses. Returns how many went."""
    views = root.views(model)
    newest = max((view.manifest.serial for view in views), default=0)
    gone = 0
    for view in views:
        place = (*layout.model_folder(model), view.token)
        if view.manifest.serial < newest and not in_use(model, view.token) and unused_elsewhere(root, place):
            root.throw(place)
            gone += 1
    return gone


def unused_elsewhere(root: Root, view: Place) -> bool:
    """Whether no worker, this one included, has marked a view as used."""
    try:
        held = root.disk.lock((*view, layout.MANIFEST))
    except OSError as error:
        log.warning("lock_failed", extra={"event": "lock_failed", "error": error.strerror})
        return False
    if held is None:
        return False
    os.close(held)
    return True
