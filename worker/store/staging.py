"""A model on its way into the store: which files are missing, where they are written, and how they become a copy.

    missing() → part(file) → (the transfer writes it) → placed(file, digests) → … → commit(…) → close()

Every file that is whole becomes a blob at once, so another model that needs it finds it. The folder of its part stays
until the copy is there: at a start it says that the blob belongs to a download to be gone on with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from schemas.errors import InvalidName
from schemas.model import Profile
from worker.sources import BadListing, Corrupt, Digest, Listing, RemoteFile
from worker.store import layout
from worker.store.describing import described_copy
from worker.store.errors import BadPlace, Unclear
from worker.store.ground import Ground
from worker.store.hashing import clone, sha256_of
from worker.store.manifest import Copy, HeldFile, Manifest
from worker.store.root import content_of
from worker.store.sweep import retire
from worker.transfer.part import Digests, Part

log = logging.getLogger(__name__)
T = TypeVar("T")
ELSEWHERE_S: Final = 5.0
"""Before the next look at a part that another worker writes."""


@dataclass(frozen=True, slots=True)
class Installing:
    """What a manifest says beside the files."""

    source: str
    want: str = ""
    listing: str = ""
    profile: Profile = field(default_factory=Profile)
    retain: bool = False
    skip_parsing: bool = False
    generation: int | None = None


class Staging:
    """Made by `Store.begin`. Used by one task; `close` in the end, whatever happened."""

    def __init__(
        self,
        ground: Ground,
        model: str,
        listing: Listing,
        found: dict[str, str],
        done: Callable[[Copy], None],
        *,
        fresh: bool = False,
    ) -> None:
        self.model = model
        self.listing = listing
        self._ground = ground
        self._have = found
        self._done = done
        self._fresh = fresh
        self._parts: set[str] = set()
        self._stop = threading.Event()
        self._closed = False
        self._asides: set[asyncio.Future[Any]] = set()
        for sha256 in found.values():
            ground.held[sha256] += 1

    def missing(self) -> tuple[RemoteFile, ...]:
        """The files whose content is not here yet."""
        return () if self.listing.in_place else tuple(f for f in self.listing.files if f.path not in self._have)

    def key(self, file: RemoteFile) -> str:
        """The same for files that are one content, of whatever model."""
        return layout.partial_key(self.listing, file)

    async def part(self, file: RemoteFile) -> Part:
        """Where the file is written, with what is there of it. Raises `Unclear` while another worker of this root
        writes it; a `SourceError` of the disk."""
        key = self.key(file)
        if key not in self._parts and not await self._aside(self._take, key):
            raise Unclear(f"another worker is fetching {file.path} into the same folder", retry_after_s=ELSEWHERE_S)
        folder = self._ground.root.disk.path((*layout.PARTIAL, key))
        return Part(folder / "data", folder / "journal")

    async def _aside(self, call: Callable[..., T], *args: Any) -> T:
        """A call whose end `close` waits for, although whoever asked has left."""
        begun = asyncio.ensure_future(self._ground.do(call, *args))
        self._asides.add(begun)
        begun.add_done_callback(self._asides.discard)
        return await asyncio.shield(begun)

    async def arrived(self, file: RemoteFile) -> Digests | None:
        """The file's content, where it has become a blob meanwhile because another model needed it too."""
        return await self._ground.do(self._arrived, file)

    def _arrived(self, file: RemoteFile) -> Digests | None:
        root = self._ground.root
        content = content_of(root, self.key(file))
        found = root.disk.look(layout.blob(content)) if content else None
        if content is None or found is None or file.size_bytes not in (None, found.size_bytes):
            return None
        return Digests(found.size_bytes, content)

    async def written_bytes(self) -> int:
        """Of the missing files, what an earlier try has left on the disk."""
        return await self._ground.do(self._written)

    def _written(self) -> int:
        parts = [(*layout.PARTIAL, self.key(file), "data") for file in self.missing()]
        return sum(self._ground.root.disk.allocated(part) for part in parts)

    def _take(self, key: str) -> bool:
        disk, place = self._ground.root.disk, (*layout.PARTIAL, key)
        self._ground.root.check()
        disk.make(place)
        if not self._ground.parts.take(key, id(self)):
            return False
        self._parts.add(key)
        self._ground.parts.mark(key, self.model)
        for name in ("data", "journal"):
            found = disk.look((*place, name))
            if found is not None and (found.kind != "file" or disk.look((*place, "data")) is None):
                disk.clear((*place, name))
        return True

    async def adopt(self, file: RemoteFile, candidates: Sequence[Path]) -> bool:
        """Take the file from elsewhere on this machine, if it is there with the right content."""
        sha256 = layout.known_sha256(file.digest)
        if sha256 is None or not candidates:
            return False
        part = await self.part(file)
        for candidate in candidates:
            size = await self._aside(self._copy, candidate, part, sha256)
            if size is not None:
                await self.placed(file, Digests(size, sha256))
                log.info("file_adopted", extra={"event": "file_adopted", "model": self.model, "file": file.path})
                return True
        return False

    def _copy(self, candidate: Path, part: Part, sha256: str) -> int | None:
        """Clone or copy, and compare: the size if it is the right content."""
        disk, place = self._ground.root.disk, (*layout.PARTIAL, part.data.parent.name, "data")
        try:
            source = os.open(candidate, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            if disk.look(place) is not None:
                disk.clear(place)
            target = disk.create(place)
            try:
                shared = clone(source, target)
                found = sha256_of(target if shared else source, self._stop, into=None if shared else target)
                size = os.fstat(target).st_size
                os.fsync(target)
            finally:
                os.close(target)
            if found == sha256:
                return size
            disk.clear(place)
            return None
        finally:
            os.close(source)

    async def placed(self, file: RemoteFile, digests: Digests, expected: Collection[Digest] = ()) -> None:
        """A file is whole: check it and make it a blob. Raises `Corrupt`, and then nothing of it is left."""
        key = self.key(file)
        for digest in {*expected, *((file.digest,) if file.digest else ())}:
            found = digests.of(digest.algorithm)
            if (found is not None and found != digest) or file.size_bytes not in (None, digests.size_bytes):
                await self._ground.do(self._drop_bytes, key)
                raise Corrupt(f"{file.path}: what came is {found} and should be {digest}")
        await self._ground.whole(self._place(file, key, digests))

    def _drop_bytes(self, key: str) -> None:
        for name in ("data", "journal", "placed"):
            self._ground.root.disk.clear((*layout.PARTIAL, key, name))

    async def _place(self, file: RemoteFile, key: str, digests: Digests) -> None:
        ground, root = self._ground, self._ground.root
        async with ground.changing(root):
            if await ground.do(root.disk.look, (*layout.PARTIAL, key, "data")) is not None:
                await ground.note(root, (*layout.PARTIAL, key, "placed"), f"sha256-{digests.sha256}".encode())
                place = partial(root.place, key, digests.sha256, digests.size_bytes, anew=self._fresh)
                await ground.do(place)
            elif not await ground.do(root.has_blob, digests.sha256, digests.size_bytes):
                raise Unclear(f"what came of {file.path} is not there any more")
            if not self._closed and file.path not in self._have:
                self._have[file.path] = digests.sha256
                ground.held[digests.sha256] += 1

    # -- the end -----------------------------------------------------------------------------------------------------
    async def commit(self, told: Installing) -> Copy:
        """All files are here: make them the model's copy. The one before it serves on for whoever uses it.

        Raises `BadModelFile`, `BadPlace`, `Unclear`, or another `SourceError`; the copy before it is untouched then.
        """
        if self.missing():
            raise Unclear(f"{self.missing()[0].path} is not there yet")
        copy = await self._ground.whole(self._commit(told))
        self._done(copy)
        return copy

    async def _commit(self, told: Installing) -> Copy:
        ground, root = self._ground, self._ground.root
        files = await ground.do(self._files)
        token = layout.revision_token(
            self.listing.revision,
            [(file.path, file.sha256 or str(file.modified_ns)) for file in files],
            self.listing.main,
        )
        async with ground.changing(root):
            manifest = await ground.do(self._built, token, files, told)
            view = (*layout.model_folder(self.model), token)
            await ground.note(root, (*view, layout.MANIFEST), manifest.model_dump_json(exclude_defaults=True).encode())
            await ground.do(self._settle, token, ground.in_use())
            copy = await ground.do(root.copy, self.model)
        if copy is None or copy.token != token:
            raise Unclear("the copy was taken away as soon as it was there")
        return copy

    def _built(self, token: str, files: tuple[HeldFile, ...], told: Installing) -> Manifest:
        root, view = self._ground.root, (*layout.model_folder(self.model), token)
        serial = max((each.manifest.serial for each in root.views(self.model)), default=0) + 1
        root.build(self.model, token, () if self.listing.in_place else files)
        try:
            config = {} if told.skip_parsing else described_copy(root.disk.path(view), self._main(), files)
        except Exception:
            if root.disk.look((*view, layout.MANIFEST)) is None:
                root.disk.clear(view)
            raise
        return Manifest(
            model=self.model,
            source=told.source,
            revision=self.listing.revision,
            serial=serial,
            main=self._main(),
            files=files,
            in_place=self.listing.in_place,
            installed_at=time.time(),
            generation=told.generation,
            want=told.want,
            listing=told.listing,
            profile=told.profile,
            retain=told.retain,
            config=config,
        )

    def _main(self) -> str:
        listing = self.listing
        return str(listing.root / listing.main) if listing.in_place and listing.root and listing.main else listing.main

    def _files(self) -> tuple[HeldFile, ...]:
        if self.listing.in_place:
            return tuple(self._in_place(file) for file in self.listing.files)
        held: list[HeldFile] = []
        for file in self.listing.files:
            sha256 = self._have[file.path]
            found = self._ground.root.disk.look(layout.blob(sha256))
            if found is None:
                raise Unclear(f"the content of {file.path} is not in the store any more")
            held.append(HeldFile(path=file.path, size_bytes=found.size_bytes, sha256=sha256, role=file.role))
        return tuple(held)

    def _in_place(self, file: RemoteFile) -> HeldFile:
        root = self.listing.root
        if root is None or not root.is_absolute():
            raise BadListing("a source that is served in place must name an absolute folder")
        path = root / file.path
        if not path.is_file():
            raise BadPlace(f"{path} is not a file of this node")
        told = path.stat()
        return HeldFile(path=str(path), size_bytes=told.st_size, role=file.role, modified_ns=told.st_mtime_ns)

    def _settle(self, token: str, in_use: Callable[[str, str], bool]) -> None:
        """After the manifest: the copy is there, and what it replaces may go."""
        root = self._ground.root
        root.switch(self.model, token)
        root.heal(self.model)
        for key in {self.key(file) for file in self.listing.files} if not self.listing.in_place else ():
            self._clear_part(key)
        before = root.retained_blobs(self.model)
        root.disk.clear(layout.retained(self.model))
        if root.deletable:
            before |= {blob for view in root.views(self.model) for blob in view.manifest.blobs}
            retire(root, self.model, in_use)
            root.release(before, self._ground.held)

    def _clear_part(self, key: str) -> None:
        """A part goes, unless another staging or worker writes it."""
        root, parts, place = self._ground.root, self._ground.parts, (*layout.PARTIAL, key)
        self._parts.discard(key)
        if root.disk.look(place) is not None and parts.take(key, id(self)):
            parts.drop(key, id(self), lambda: root.disk.clear(place))

    async def close(self, *, discard: bool = False) -> None:
        """Let go of everything. What has come stays for the next try, unless it is to be discarded."""
        self._stop.set()
        await self._ground.whole(self._close(discard=discard))

    async def _close(self, *, discard: bool) -> None:
        ground, root = self._ground, self._ground.root
        while self._asides:
            await asyncio.wait(set(self._asides))
        self._closed, mine = True, list(self._have.values())
        for sha256 in mine:
            ground.held[sha256] -= 1
            if ground.held[sha256] <= 0:
                del ground.held[sha256]
        self._have = {}
        try:
            if discard and root.writable and not self.listing.in_place:
                async with ground.changing(root):
                    await ground.do(self._discard, mine)
        finally:
            parts, self._parts = self._parts, set()
            for key in parts:
                await ground.do(ground.parts.drop, key, id(self))

    def _discard(self, mine: list[str]) -> None:
        for file in self.listing.files:
            self._parts.discard(key := self.key(file))
            self._ground.parts.drop(key, id(self))
            content = self._ground.parts.forget(self.model, key)
            mine += [content] if content else []
        self._ground.root.release(mine, self._ground.held)
        folder = layout.model_folder(self.model)
        if self._ground.root.deletable and not self._ground.root.views(self.model):
            self._ground.root.throw(folder)


def check_listing(model: str, listing: Listing) -> None:
    """That nothing in a listing can lead out of its folder. Raises `BadListing`, `InvalidName`."""
    try:
        layout.model_folder(model)
    except InvalidName as error:
        raise BadListing(error.message) from error
    if not listing.in_place:
        layout.check_paths(file.path for file in listing.files)
        if listing.main not in {file.path for file in listing.files}:
            raise BadListing(f"the source names {listing.main!r} to be loaded and does not list it")
