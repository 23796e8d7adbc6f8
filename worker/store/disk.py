"""Every change that the store makes on a disk goes through here, and is on the disk when the call returns.

Places are tuples of names below the root. Each folder on the way is opened without following links, so a link that
somebody plants cannot lead a write or a delete out of the root. `step` is told before and after every change: tests end
the process there, or raise what a full disk raises.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Place = tuple[str, ...]
Kind = Literal["file", "folder", "link", "other"]
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_LINKS: Final = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES))
NOTE_LIMIT_BYTES: Final = 4 << 20
TEMPORARY: Final = ".new-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder. `modified_at`: Unix seconds."""

    name: str
    kind: Kind
    size_bytes: int
    modified_at: float


def _unwatched(_: str) -> None: ...


class Disk:
    """The files below one root. Calls block: they are for threads. They raise `OSError`."""

    def __init__(self, root: Path, step: Callable[[str], None] = _unwatched) -> None:
        self.root = root
        self._step = step

    # -- looking -----------------------------------------------------------------------------------------------------
    @contextmanager
    def folder(self, place: Place) -> Generator[int]:
        """A descriptor of a folder, reached without following a link."""
        held = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in place:
                inner = os.open(checked(name), _FOLDER, dir_fd=held)
                os.close(held)
                held = inner
            yield held
        finally:
            os.close(held)

    def entries(self, place: Place) -> list[Entry]:
        """What is in a folder, by name; nothing where there is none."""
        try:
            with self.folder(place) as held:
                found = [_entry(name, os.stat(name, dir_fd=held, follow_symlinks=False)) for name in os.listdir(held)]  # noqa: PTH208  a descriptor
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found, key=lambda entry: entry.name)

    def look(self, place: Place) -> Entry | None:
        """What is at a place, a link as itself; None if nothing is."""
        try:
            with self.folder(place[:-1]) as held:
                return _entry(place[-1], os.stat(checked(place[-1]), dir_fd=held, follow_symlinks=False))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def identity(self, place: Place) -> tuple[int, int] | None:
        """Device and number of what is at a place, a link as itself; None if nothing is."""
        try:
            with self.folder(place[:-1]) as held:
                told = os.stat(checked(place[-1]), dir_fd=held, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return told.st_dev, told.st_ino

    def allocated(self, place: Place) -> int:
        """Bytes that a file has of the disk: of a sparse one fewer than its size; 0 if there is none."""
        try:
            with self.folder(place[:-1]) as held:
                return os.stat(checked(place[-1]), dir_fd=held, follow_symlinks=False).st_blocks * 512
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def target(self, place: Place) -> str | None:
        """Where a symbolic link leads; None if it is none."""
        try:
            with self.folder(place[:-1]) as held:
                return os.readlink(checked(place[-1]), dir_fd=held)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def open(self, place: Place, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a regular file; never of what a link leads to."""
        with self.folder(place[:-1]) as held:
            opened = os.open(
                checked(place[-1]), flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644, dir_fd=held
            )
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            os.close(opened)
            raise OSError(errno.EINVAL, "it is no regular file", "/".join(place))
        return opened

    def read(self, place: Place, limit_bytes: int = NOTE_LIMIT_BYTES) -> bytes:
        """The content of a small file."""
        with os.fdopen(self.open(place), "rb") as file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise OSError(errno.EFBIG, f"it has more than {limit_bytes} bytes", "/".join(place))
        return data

    def path(self, place: Place) -> Path:
        """The place as others name it."""
        return self.root.joinpath(*place)

    def space(self) -> tuple[int, int]:
        """Bytes of the file system: free for us, and in all."""
        told = os.statvfs(self.root)
        return told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize

    # -- changing ----------------------------------------------------------------------------------------------------
    @contextmanager
    def changing(self, what: str, place: Place) -> Generator[None]:
        """One step: before it and after it the process may end, and nothing may be half."""
        name = f"{what} {'/'.join(place)}"
        self._step(f"before {name}")
        yield
        self._step(f"after {name}")

    def make(self, place: Place) -> None:
        """A folder, with all above it. One that is there stays."""
        for depth in range(1, len(place) + 1):
            with self.folder(place[: depth - 1]) as held:
                try:
                    os.close(os.open(checked(place[depth - 1]), _FOLDER, dir_fd=held))
                except FileNotFoundError:
                    self._make_one(held, place[:depth])

    def _make_one(self, held: int, place: Place) -> None:
        with self.changing("make", place):
            try:
                os.mkdir(place[-1], 0o755, dir_fd=held)
            except FileExistsError:
                return
            os.fsync(held)

    def rename(self, old: Place, new: Place) -> None:
        """Move in one step; a file or link that is at `new` is replaced."""
        with self.folder(old[:-1]) as source, self.folder(new[:-1]) as target, self.changing("rename", new):
            os.rename(checked(old[-1]), checked(new[-1]), src_dir_fd=source, dst_dir_fd=target)
            os.fsync(target)
            os.fsync(source)

    def link(self, old: Place, new: Place) -> bool:
        """A second name of a file; False where the file system has no such thing. Not on the disk before `sync`."""
        with self.folder(old[:-1]) as source, self.folder(new[:-1]) as target:
            try:
                with self.changing("link", new):
                    os.link(old[-1], checked(new[-1]), src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
            except OSError as error:
                if error.errno in _NO_LINKS:
                    return False
                raise
            return True

    def symlink(self, target: str, place: Place) -> None:
        """A symbolic link. Not on the disk before `sync`."""
        with self.folder(place[:-1]) as held, self.changing("symlink", place):
            os.symlink(target, checked(place[-1]), dir_fd=held)

    def sync(self, place: Place) -> None:
        """A folder's names, on the disk."""
        with self.folder(place) as held:
            os.fsync(held)

    def unlink(self, place: Place) -> None:
        """A file or link away, if it is there."""
        try:
            with self.folder(place[:-1]) as held, self.changing("unlink", place):
                os.unlink(checked(place[-1]), dir_fd=held)
                os.fsync(held)
        except FileNotFoundError:
            return

    def clear(self, place: Place) -> None:
        """A file, or a folder with all that is in it, away; links are not followed."""
        found = self.look(place)
        if found is None:
            return
        if found.kind != "folder":
            self.unlink(place)
            return
        for entry in self.entries(place):
            self.clear((*place, entry.name))
        try:
            with self.folder(place[:-1]) as held, self.changing("remove", place):
                os.rmdir(place[-1], dir_fd=held)
        except FileNotFoundError:
            return

    def create(self, place: Place) -> int:
        """A descriptor of a new, empty file to be written; what was there is replaced, a link not followed."""
        with self.folder(place[:-1]) as held, self.changing("create", place):
            with suppress(FileNotFoundError):
                os.unlink(checked(place[-1]), dir_fd=held)
            return os.open(
                place[-1], os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=held
            )

    def touch(self, place: Place, at: float) -> None:
        """Set the time of last change. Raises nothing where there is no such file."""
        try:
            with self.folder(place[:-1]) as held:
                os.utime(checked(place[-1]), (at, at), dir_fd=held, follow_symlinks=False)
        except FileNotFoundError:
            return

    def lock(self, place: Place, *, shared: bool = False) -> int | None:
        """A lock on a file, made if need be, until its descriptor is closed; None if somebody else has it.

        It goes with the process, however that ends.
        """
        flags = os.O_RDONLY if shared else os.O_RDWR | os.O_CREAT
        held = self.open(place, flags)
        try:
            fcntl.flock(held, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return None
        except OSError:
            os.close(held)
            raise
        return held


def checked(name: str) -> str:
    """A name that is one part of a path. Raises `OSError` for any other: the last of several checks."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise OSError(errno.EINVAL, "it is not the name of a file", name[:60])
    return name


def _entry(name: str, told: os.stat_result) -> Entry:
    return Entry(name, _kind(told.st_mode), told.st_size, told.st_mtime)


def _kind(mode: int) -> Kind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "link" if stat.S_ISLNK(mode) else "other"
