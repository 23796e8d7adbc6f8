"""One root of the store, as plain steps: each leaves old or new on the disk, and may be the last.

All calls block and raise `OSError`. Whoever changes something holds the root's lock (`Root.lock`).
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from worker.store import layout
from worker.store.disk import TEMPORARY, Disk, Place
from worker.store.errors import ReadOnlyRoot, RootGone, Unclear
from worker.store.manifest import BadManifest, Copy, HeldFile, Manifest, read_manifest
from worker.store.settings import Mode

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class View:
    """A whole view: it has its manifest."""

    token: str
    manifest: Manifest
    used_at: float


@dataclass(slots=True)
class References:
    """Which contents are needed. With anything in `unclear` nothing may be taken for unneeded."""

    blobs: set[str] = field(default_factory=set[str])
    unclear: list[str] = field(default_factory=list[str])


class Root:
    """The steps. `mode` is what this node may do."""

    def __init__(self, disk: Disk, mode: Mode) -> None:
        self.disk = disk
        self.mode: Mode = mode
        self._seen = False

    @property
    def writable(self) -> bool:
        """Files may be added."""
        return self.mode != "ro"

    @property
    def deletable(self) -> bool:
        """Files may be deleted."""
        return self.mode == "rw-delete"

    # -- beginning ---------------------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """Have the layout there, where it may be made. Raises `ReadOnlyRoot` for a folder that is not a store's."""
        if self.writable:
            self.disk.root.mkdir(mode=0o755, parents=True, exist_ok=True)
        found = self.disk.look(layout.STORE)
        if found is None and self.writable:
            self._found()
        elif found is not None:
            self._check_format()
        if self.writable:
            for folder in layout.FOLDERS:
                self.disk.make(folder)

    def _found(self) -> None:
        """A new store: only where nothing could be taken for its own and swept away."""
        taken = [folder[0] for folder in layout.FOLDERS if self.disk.entries(folder)]
        if taken:
            raise ReadOnlyRoot(
                f"{self.disk.root} has {', '.join(taken)} and is not Puna's: name an empty folder in models_root_dir"
            )
        fresh = (f"{TEMPORARY}store",)
        with os.fdopen(self.disk.create(fresh), "wb") as file:
            file.write(orjson.dumps({"format": layout.FORMAT}))
            file.flush()
            os.fsync(file.fileno())
        self.disk.rename(fresh, layout.STORE)

    def _check_format(self) -> None:
        try:
            told = orjson.loads(self.disk.read(layout.STORE))["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ReadOnlyRoot(f"{self.disk.root}: store.json cannot be read; nothing is touched") from error
        if told != layout.FORMAT:
            raise ReadOnlyRoot(f"{self.disk.root} has format {told}; this worker knows {layout.FORMAT}")

    def check(self) -> None:
        """Raises `RootGone` where a store was seen and is none: an unmounted folder is not taken for an empty store."""
        here = self.disk.look(layout.STORE) is not None
        if self._seen and not here:
            raise RootGone(
                f"{self.disk.root} is not there any more, or is empty: mount it again, or start the worker anew to "
                "begin with an empty folder"
            )
        self._seen = self._seen or here

    def probe(self) -> None:
        """That the folder can be read, and written to where that is allowed. Raises `RootGone`, `OSError`."""
        self.check()
        needed = os.R_OK | os.X_OK | (os.W_OK if self.writable else 0)
        if not os.access(self.disk.root, needed):
            raise PermissionError(errno.EACCES, "it may not be read and written, or its file system is read-only")

    def lock(self) -> int | None:
        """The right to change; None while another worker has it. Raises `RootGone`."""
        self.check()
        return self.disk.lock(layout.LOCK)

    # -- looking -----------------------------------------------------------------------------------------------------
    def scan(self) -> dict[str, Copy]:
        """All copies, by model. Raises `RootGone`."""
        self.check()
        found = (self.copy(model) for model in self.models())
        return {copy.model: copy for copy in found if copy is not None}

    def models(self) -> list[str]:
        """Those that have a folder."""
        found = (layout.model_of(entry.name) for entry in self.disk.entries(layout.MODELS) if entry.kind == "folder")
        return [model for model in found if model is not None]

    def copy(self, model: str) -> Copy | None:
        """The model's newest whole view."""
        best = max(self.views(model), key=lambda view: view.manifest.serial, default=None)
        if best is None:
            return None
        view = (*layout.model_folder(model), best.token)
        broken = tuple(file.path for file in best.manifest.files if not self._sound(view, best.manifest, file))
        return Copy(model, best.token, best.manifest, self.disk.path(view), best.used_at, broken, self.deletable)

    def _sound(self, view: Place, manifest: Manifest, file: HeldFile) -> bool:
        """Whether a file is there: its blob in its place in the view, or in place still the one that was looked at."""
        return same_file(file) if manifest.in_place else self.linked(view, file)

    def view_of(self, path: Path) -> tuple[str, str] | None:
        """The model and token of the view that a path leads into; None for a path elsewhere."""
        if not path.is_relative_to(self.disk.root):
            return None
        parts = path.relative_to(self.disk.root).parts
        if len(parts) < 4 or parts[:1] != layout.MODELS or not layout.is_revision(parts[2]):
            return None
        model = layout.model_of(parts[1])
        return (model, parts[2]) if model is not None else None

    def views(self, model: str) -> list[View]:
        """The model's whole views. One whose manifest cannot be understood is left alone, and said."""
        folder, found = layout.model_folder(model), list[View]()
        for entry in self.disk.entries(folder):
            if entry.kind == "folder" and layout.is_revision(entry.name):
                view = self._view((*folder, entry.name), model)
                found += [view] if view else []
        return found

    def _view(self, place: Place, model: str) -> View | None:
        told = self.disk.look((*place, layout.MANIFEST))
        if told is None:
            return None
        try:
            manifest = read_manifest(self.disk.read((*place, layout.MANIFEST)))
        except (BadManifest, OSError) as error:
            log.error(
                "manifest_unreadable", extra={"event": "manifest_unreadable", "model": model, "error": str(error)}
            )
            return None
        return View(place[-1], manifest, told.modified_at) if manifest.model == model else None

    def references(self) -> References:
        """Every content that a manifest names: of views old and new, and of what was retained."""
        told = References()
        for model in self.disk.entries(layout.MODELS):
            for view in self.disk.entries((*layout.MODELS, model.name)) if model.kind == "folder" else ():
                if view.kind == "folder":
                    self._refer((*layout.MODELS, model.name, view.name, layout.MANIFEST), told)
        for entry in self.disk.entries(layout.RETAINED):
            if not entry.name.startswith(TEMPORARY):
                self._refer((*layout.RETAINED, entry.name), told)
        return told

    def _refer(self, place: Place, told: References) -> None:
        if self.disk.look(place) is None:
            return
        try:
            told.blobs |= read_manifest(self.disk.read(place)).blobs
        except (BadManifest, OSError) as error:
            told.unclear.append(f"{'/'.join(place)}: {error}")

    def retained_blobs(self, model: str) -> set[str]:
        """The contents that stayed when the model was deleted."""
        told = References()
        self._refer(layout.retained(model), told)
        return told.blobs

    def has_blob(self, sha256: str, size_bytes: int | None = None) -> bool:
        """Whether a content is here, of the right size as far as that is known."""
        found = self.disk.look(layout.blob(sha256))
        return found is not None and found.kind == "file" and size_bytes in (None, found.size_bytes)

    # -- installing --------------------------------------------------------------------------------------------------
    def place(self, key: str, sha256: str, size_bytes: int, *, anew: bool = False) -> None:
        """A part that is whole becomes a blob. One that is there already stays, because views lead to it, unless its
        size is wrong or the content came `anew`: then all views get the new one. Raises `Unclear` if the part is not
        what was written."""
        data = (*layout.PARTIAL, key, "data")
        file = self.disk.open(data)
        try:
            told = os.fstat(file)
            if told.st_size != size_bytes:
                raise Unclear(f"a part has {told.st_size} bytes on the disk and not {size_bytes}")
            if told.st_nlink == 1:
                os.fchmod(file, 0o444)
            os.fsync(file)
        finally:
            os.close(file)
        if not anew and self.has_blob(sha256, size_bytes):
            self.disk.unlink(data)
        else:
            self.disk.rename(data, layout.blob(sha256))
            self._spread(sha256)
        self.disk.unlink((*layout.PARTIAL, key, "journal"))

    def _spread(self, sha256: str) -> None:
        """Have every view that needs a content lead to the blob that is there now."""
        for model in self.models():
            for view in self.views(model):
                for file in view.manifest.files if sha256 in view.manifest.blobs else ():
                    if file.sha256 == sha256:
                        self._link((*layout.model_folder(model), view.token), file)

    def build(self, model: str, token: str, files: Iterable[HeldFile]) -> None:
        """A view's links, and no manifest yet. Of a view that is whole only what is missing or wrong is made anew.
        Raises `Unclear` where a content is not here."""
        view = (*layout.model_folder(model), token)
        if self.disk.look((*view, layout.MANIFEST)) is None:
            self.disk.clear(view)
        self.disk.make(view)
        folders = {view}
        for file in files:
            place = (*view, *layout.inner(file.path))
            self.disk.make(place[:-1])
            folders |= {place[:depth] for depth in range(len(view), len(place))}
            if not self.has_blob(file.sha256 or "", file.size_bytes):
                raise Unclear(f"the content of {file.path} is not in the store any more")
            self._link(view, file)
        for folder in folders:
            self.disk.sync(folder)

    def heal(self, model: str) -> None:
        """Have every file of the model's views be its blob, where that is here: a blob may have been fetched anew."""
        for view in self.views(model):
            place = (*layout.model_folder(model), view.token)
            for file in view.manifest.files if not view.manifest.in_place else ():
                if self.has_blob(file.sha256 or "", file.size_bytes):
                    self._link(place, file)

    def _link(self, view: Place, file: HeldFile) -> None:
        if self.linked(view, file):
            return
        inner, sha256 = layout.inner(file.path), file.sha256 or ""
        place = (*view, *inner)
        fresh = (*place[:-1], f"{TEMPORARY}link")
        self.disk.unlink(fresh)
        if not self.disk.link(layout.blob(sha256), fresh):
            self.disk.symlink(layout.blob_target(len(inner) - 1, sha256), fresh)
        self.disk.rename(fresh, place)

    def linked(self, view: Place, file: HeldFile) -> bool:
        """Whether a file of a view is its blob, and not something else in its place."""
        inner, blob = layout.inner(file.path), layout.blob(file.sha256 or "")
        there, here = self.disk.identity((*view, *inner)), self.disk.identity(blob)
        if here is None or there is None:
            return False
        return there == here or self.disk.target((*view, *inner)) == layout.blob_target(len(inner) - 1, blob[-1][7:])

    def switch(self, model: str, token: str) -> None:
        """Have `current` lead to a view, in one step."""
        folder = layout.model_folder(model)
        if self.disk.target((*folder, layout.CURRENT)) == token:
            return
        fresh = (*folder, f"{TEMPORARY}{layout.CURRENT}")
        self.disk.unlink(fresh)
        self.disk.symlink(token, fresh)
        self.disk.rename(fresh, (*folder, layout.CURRENT))

    # -- away --------------------------------------------------------------------------------------------------------
    def throw(self, place: Place) -> None:
        """A file or folder is gone in one step; its bytes go then."""
        bin_ = (*layout.TRASH, secrets.token_hex(8))
        try:
            self.disk.rename(place, bin_)
        except FileNotFoundError:
            return
        self.disk.clear(bin_)

    def _begun(self) -> set[str]:
        """Contents that came for downloads which are to be gone on with."""
        keys = (entry.name for entry in self.disk.entries(layout.PARTIAL) if entry.kind == "folder")
        found = (content_of(self, key) for key in keys if self.disk.look((*layout.PARTIAL, key, "data")) is None)
        return {content for content in found if content is not None}

    def release(self, candidates: Collection[str], held: Collection[str]) -> int:
        """Delete those of the contents that nothing needs. Returns the bytes."""
        if not candidates or not self.deletable:
            return 0
        needed = self.references()
        if needed.unclear:
            log.error("references_unclear", extra={"event": "references_unclear", "notes": needed.unclear[:8]})
            return 0
        freed = 0
        for sha256 in sorted(set(candidates) - needed.blobs - set(held) - self._begun()):
            found = self.disk.look(layout.blob(sha256))
            self.disk.unlink(layout.blob(sha256))
            freed += found.size_bytes if found else 0
        return freed


def content_of(root: Root, key: str) -> str | None:
    """The SHA-256 of a part, if it is known: by its key, or because its content was placed."""
    known = layout.blob_of(key)
    if known is not None:
        return known
    place = (*layout.PARTIAL, key, "placed")
    if root.disk.look(place) is None:
        return None
    return layout.blob_of(root.disk.read(place, 128).decode("ascii", "replace"))


def same_file(file: HeldFile) -> bool:
    """Whether a file that is served in place is still the one that was looked at."""
    try:
        told = Path(file.path).stat()
    except OSError:
        return False
    return told.st_size == file.size_bytes and file.modified_ns in (None, told.st_mtime_ns)
