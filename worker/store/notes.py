"""Small files, written whole: a new one beside the old, on the disk, then in its place."""

from __future__ import annotations

import os
from typing import Any, cast

import aiofiles

from worker.store.disk import TEMPORARY, Disk, Place
from worker.store.threads import Threads


async def write_note(disk: Disk, place: Place, data: bytes, threads: Threads) -> None:
    """Have `data` at a place: that or what was there, whatever happens. Raises `OSError`."""
    fresh = (*place[:-1], f"{TEMPORARY}{place[-1]}")

    def opener(_path: str, _flags: int) -> int:
        return disk.create(fresh)

    opening: Any = aiofiles.open(fresh[-1], "wb", opener=opener, executor=threads)
    async with opening as file:
        await file.write(data)
        await file.flush()
        await threads.run(os.fsync, cast(int, file.fileno()))
    await threads.run(disk.rename, fresh, place)
