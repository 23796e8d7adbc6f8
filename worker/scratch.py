"""A folder of its own for each engine: where it runs, keeps temporary files and saved slots. Gone with the engine.

An engine may leave anything in it: links to elsewhere, folders without permissions, a hundred thousand files. Nothing
here follows a link, and no look at its size is longer than `ENTRIES_LIMIT` entries. All of it blocks: call it from a
thread.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

ENTRIES_LIMIT: Final = 100_000
_BLOCK_BYTES: Final = 512
"""The unit of `st_blocks`, whatever the file system's own."""


@dataclass(frozen=True, slots=True)
class Size:
    """What a folder holds."""

    size_bytes: int
    """On the disk: holes are not counted, folders are."""
    entries: int
    whole: bool = True
    """False: there is more, which was not counted."""


class Scratch:
    """The scratch folders of one node, below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, engine: str) -> Path:
        """Where an engine's folder is, or would be."""
        return self._root / engine

    def make(self, engine: str) -> Path:
        """An empty folder that only this user can enter. Raises `OSError`."""
        self.remove(engine)
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self.folder(engine)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def remove(self, engine: str) -> bool:
        """Remove an engine's folder and all in it. Safe to call twice. False if something of it is left, which is
        told."""
        return _remove(self.folder(engine))

    def clean(self, keep: Collection[str]) -> list[str]:
        """Remove what earlier lives have left, but for the engines `keep`. Returns the names."""
        try:
            names = sorted(os.listdir(self._root))  # noqa: PTH208 - names are wanted, of links too
        except FileNotFoundError:
            return []
        return [name for name in names if name not in keep and _remove(self._root / name)]

    def size(self, engine: str, limit: int = ENTRIES_LIMIT) -> Size:
        """What an engine's folder holds; nothing if there is none."""
        return measure(self.folder(engine), limit)


def measure(folder: Path, limit: int = ENTRIES_LIMIT) -> Size:
    """The size of a tree of folders. What vanishes or cannot be read meanwhile is not counted."""
    total, entries, ahead = 0, 0, [folder]
    linked = set[tuple[int, int]]()
    while ahead:
        with suppress(OSError), os.scandir(ahead.pop()) as found:
            for entry in found:
                if entries >= limit:
                    return Size(total, entries, whole=False)
                entries += 1
                total += _entry(entry, ahead, linked)
    return Size(total, entries)


def _entry(entry: os.DirEntry[str], ahead: list[Path], linked: set[tuple[int, int]]) -> int:
    """Its bytes; a folder is put in line. A file with several names counts once."""
    try:
        facts = entry.stat(follow_symlinks=False)
    except OSError:
        return 0
    if stat.S_ISDIR(facts.st_mode):
        ahead.append(Path(entry.path))
    elif facts.st_nlink > 1:
        if (facts.st_dev, facts.st_ino) in linked:
            return 0
        linked.add((facts.st_dev, facts.st_ino))
    return facts.st_blocks * _BLOCK_BYTES


def _remove(folder: Path) -> bool:
    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
        else:
            _remove_tree(folder)
    except OSError as error:
        fields = {"event": "scratch_left", "engine": folder.name, "reason": error.strerror}
        log.warning("scratch_left", extra=fields)
        return False
    return True


def _remove_tree(folder: Path) -> None:
    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=_opened)
    else:
        shutil.rmtree(folder, onerror=lambda remove, path, raised: _opened(remove, path, raised[1]))


def _opened(remove: Callable[..., Any], path: str, error: BaseException) -> None:
    """What may not be entered or emptied is made so once, and tried again. Raises what that raises."""
    if isinstance(error, FileNotFoundError):
        return
    if not isinstance(error, PermissionError):
        raise error
    for each in (Path(path), Path(path).parent):
        if stat.S_ISDIR(each.lstat().st_mode):
            each.chmod(0o700)
    if remove in (os.unlink, os.rmdir):
        remove(path)
    else:
        shutil.rmtree(path)
