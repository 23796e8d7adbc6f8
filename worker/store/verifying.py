"""Reading a copy's files again, and what becomes of those that are not what they were."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection

from worker.store import layout
from worker.store.ground import Ground
from worker.store.hashing import Stopped, sha256_of
from worker.store.manifest import Copy
from worker.store.root import Root, same_file

OnBytes = Callable[[int], None]


class Verifier:
    """`bytes_per_s`: how fast files are read; None: as fast as the disk gives them."""

    def __init__(self, ground: Ground, bytes_per_s: int | None) -> None:
        self._ground = ground
        self._bytes_per_s = bytes_per_s

    async def bad_files(self, root: Root, copy: Copy, on_bytes: OnBytes | None) -> tuple[str, ...]:
        """Those whose content is wrong. What of them may be deleted is, so that it comes anew. Cancelled, it stops."""
        stop = threading.Event()
        try:
            bad = await self._ground.do(self._compare, root, copy, stop, on_bytes)
        finally:
            stop.set()
        if bad and root.deletable and not copy.manifest.in_place:
            await self._ground.whole(self._condemn(root, copy, bad))
        return tuple(bad)

    def _compare(self, root: Root, copy: Copy, stop: threading.Event, on_bytes: OnBytes | None) -> list[str]:
        bad: list[str] = []
        root.check()
        for file in copy.manifest.files:
            if copy.manifest.in_place or not root.has_blob(file.sha256 or "", file.size_bytes):
                bad += [] if copy.manifest.in_place and same_file(file) else [file.path]
                continue
            opened = root.disk.open(layout.blob(file.sha256 or ""))
            try:
                found = sha256_of(opened, stop, bytes_per_s=self._bytes_per_s, on_bytes=on_bytes)
            except Stopped:
                return []
            finally:
                os.close(opened)
            bad += [file.path] if found != file.sha256 else []
        return bad

    async def _condemn(self, root: Root, copy: Copy, bad: Collection[str]) -> None:
        async with self._ground.changing(root):
            for file in copy.manifest.files:
                if file.path in bad and file.sha256:
                    await self._ground.do(root.throw, layout.blob(file.sha256))
