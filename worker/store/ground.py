"""What all parts of a store stand on: its roots, its threads, and the right to change something."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from worker.store import layout
from worker.store.disk import Place
from worker.store.errors import ReadOnlyRoot, Unclear, translated
from worker.store.notes import write_note
from worker.store.root import Root, content_of
from worker.store.sweep import take_part
from worker.store.threads import Threads
from worker.store.use import Uses

log = logging.getLogger(__name__)
T = TypeVar("T")
LOCK_LIMIT_S: Final = 60.0
_LOOK_S: Final = 0.02


class Parts:
    """The parts that this worker may write: each by all its stagings together, and by no other worker."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._held: dict[str, tuple[int, set[int]]] = {}
        self._lock = threading.Lock()

    def take(self, key: str, holder: int) -> bool:
        """Hold a part; False while another worker has it. Blocks."""
        with self._lock:
            if key not in self._held:
                held = take_part(self._root, key)
                if held is None:
                    return False
                self._held[key] = (held, set())
            self._held[key][1].add(holder)
            return True

    def drop(self, key: str, holder: int, last: Callable[[], None] = lambda: None) -> None:
        """Let go; who is the last of this worker does `last` before others may have it. Blocks."""
        with self._lock:
            held, holders = self._held.get(key, (None, set[int]()))
            holders.discard(holder)
            if holders or held is None:
                return
            del self._held[key]
            try:
                last()
            finally:
                os.close(held)

    def mark(self, key: str, model: str) -> None:
        """Note that a model wants it. Blocks."""
        disk, place = self._root.disk, layout.mark(key, model)
        disk.make(place[:-1])
        if disk.look(place) is None:
            os.close(disk.create(place))

    def forget(self, model: str, key: str) -> str | None:
        """The model wants it no more: it goes, unless another does, or somebody holds it. Returns the content that it
        stood for, if it went. Blocks."""
        disk, place = self._root.disk, (*layout.PARTIAL, key)
        disk.unlink(layout.mark(key, model))
        if disk.look(place) is None or disk.entries((*place, "for")):
            return None
        went: list[str | None] = []

        def go() -> None:
            went.append(content_of(self._root, key))
            disk.clear(place)

        holder = id(went)
        if self.take(key, holder):
            self.drop(key, holder, go)
        return went[0] if went else None

    def wanted(self, model: str) -> list[str]:
        """Keys of those that a model wants. Blocks."""
        keys = (entry.name for entry in self._root.disk.entries(layout.PARTIAL) if entry.kind == "folder")
        return [key for key in keys if self._root.disk.look(layout.mark(key, model)) is not None]


class Ground:
    """`root` is where new models go; `shared` are read besides. `held`: contents that a staging counts on."""

    def __init__(self, root: Root, shared: tuple[Root, ...], engine_paths: Callable[[], Iterable[Path]]) -> None:
        self._engine_paths = engine_paths
        self.root = root
        self.shared = shared
        self.threads = Threads("store")
        self.uses = Uses()
        self.held: Counter[str] = Counter()
        self.parts = Parts(root)
        self._changing = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def do(self, call: Callable[..., T], *args: Any) -> T:
        """A call that blocks, in a thread of its own. Raises a `SourceError` where the disk refused."""
        try:
            return await self.threads.run(call, *args)
        except OSError as error:
            raise translated(error) from error

    async def note(self, root: Root, place: Place, data: bytes) -> None:
        """Write a small file. Raises a `SourceError`."""
        try:
            await write_note(root.disk, place, data, self.threads)
        except OSError as error:
            raise translated(error) from error

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Steps that belong together: they go on to their end although whoever asked has left."""
        task = asyncio.get_running_loop().create_task(work, name="store change")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Until no change is under way."""
        if self._running:
            await asyncio.wait(set(self._running))

    def open_paths(self) -> tuple[Path, ...]:
        """The files that engines have been given."""
        return tuple(self._engine_paths())

    def in_use(self) -> Callable[[str, str], bool]:
        """Tells of a view whether it is in use now: the engines are asked here, the answer may be had in a thread."""
        paths = self.open_paths()

        def used(model: str, token: str) -> bool:
            folder = self.root.disk.path((*layout.model_folder(model), token))
            return (model, token) in self.uses or any(path.is_relative_to(folder) for path in paths)

        return used

    @asynccontextmanager
    async def changing(self, root: Root) -> AsyncGenerator[None]:
        """The right to change a root: one of this worker at a time, and one worker. Raises `ReadOnlyRoot`,
        `Unclear` when another worker does not let go."""
        if not root.writable:
            raise ReadOnlyRoot(f"{root.disk.root} may not be changed by this node (its mode is ro)")
        async with self._changing:
            held = await self._lock(root)
            try:
                yield
            finally:
                os.close(held)

    async def _lock(self, root: Root) -> int:
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + LOCK_LIMIT_S, _LOOK_S
        while (held := await self.do(root.lock)) is None:
            if loop.time() > until:
                raise Unclear(f"another worker has been changing {root.disk.root} for {LOCK_LIMIT_S:g} s")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 1.0)
        return held
