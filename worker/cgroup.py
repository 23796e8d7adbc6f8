"""A cgroup (version 2) for each engine, where the system has delegated ours to us.

The rules, from the kernel's Documentation/admin-guide/cgroup-v2.rst, that give this file its shape:

* Who may write a cgroup's `cgroup.procs` and `cgroup.subtree_control` may divide it further.
* A cgroup whose children have controllers may have no process of its own. So the worker first moves into a leaf,
  `worker`, beside the branch `puna-<node>`, which has a cgroup for each engine. Only the root is exempt.
* A cgroup is removed by removing its folder, which is refused (EBUSY) while a process is in it, dying ones included.

Everything here reads and writes files and may block: call it from a thread.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from worker.cgroupfigures import CgroupFigures, figures, flat
from worker.cgroupground import LEAF, REMEDY, Ground, survey, words

__all__ = ["Branch", "Cgroup", "CgroupLimits", "Ground", "disks_of", "is_root", "settings", "survey"]

log = logging.getLogger(__name__)

BLOCK_DEVICES: Final = Path("/sys/dev/block")
REMOVE_LIMIT_S: Final = 5.0
_POLL_S: Final = 0.01
_PERIOD_US: Final = 100_000
_LEAST_QUOTA_US: Final = 1_000


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """`None`: no limit."""

    cpu_cores: float | None = None
    memory_bytes: int | None = None
    swap_bytes: int | None = None
    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None


class Branch:
    """The cgroups of one node's engines: `<ours>/puna-<node>/<engine>`."""

    def __init__(self, ground: Ground, node: str, *, pid: int | None = None) -> None:
        self.ground = ground
        """What could be had; changed by `grow`."""
        self._node = node
        self._pid = os.getpid() if pid is None else pid

    def grow(self) -> Ground:
        """Make the branch. Where that fails all is left as it was, and the ground says why. May be called twice."""
        if self.ground.folder is None:
            return self.ground
        try:
            enabled = self._divide(self.ground.folder)
        except OSError as error:
            self._undo(self.ground.folder)
            self.ground = Ground(reason=_told(error, self.ground.folder))
        else:
            self.ground = replace(self.ground, controllers=enabled)
        fields = {"event": "cgroups", "controllers": sorted(self.ground.controllers), "reason": self.ground.reason}
        log.info("cgroups", extra=fields)
        return self.ground

    def _divide(self, folder: Path) -> frozenset[str]:
        if not is_root(folder):
            leaf = folder / LEAF
            leaf.mkdir(exist_ok=True)
            _write(leaf / "cgroup.procs", str(self._pid))
        enabled = _enable(folder, self.ground.controllers)
        self._folder(folder).mkdir(exist_ok=True)
        return _enable(self._folder(folder), enabled)

    def _undo(self, folder: Path) -> None:
        with suppress(OSError):
            self._folder(folder).rmdir()
        if not is_root(folder):
            with suppress(OSError):
                _write(folder / "cgroup.procs", str(self._pid))
                (folder / LEAF).rmdir()

    def make(self, engine: str, limits: CgroupLimits, disks: Sequence[str] = ()) -> Cgroup | None:
        """An empty cgroup with these limits; what an earlier process of this id left in it is ended. `disks` are block
        devices (`8:0`). `None` where nothing is delegated. Raises `OSError`."""
        if self.ground.folder is None:
            return None
        cgroup = self.of(engine)
        if cgroup.folder.exists():
            cgroup.remove()
        cgroup.folder.mkdir(exist_ok=True)
        for name, text in settings(limits, disks, self.ground.controllers):
            _set(cgroup.folder / name, text)
        return cgroup

    def of(self, engine: str) -> Cgroup:
        """The cgroup of an engine, which may or may not exist. Raises `LookupError` where nothing is delegated."""
        if self.ground.folder is None:
            raise LookupError(self.ground.reason or "cgroups are not used")
        return Cgroup(self._folder(self.ground.folder) / engine)

    def tidy(self, keep: Collection[str]) -> list[str]:
        """Remove the empty cgroups of other engines than `keep`; returns their names."""
        if self.ground.folder is None:
            return []
        folders = [each for each in _children(self._folder(self.ground.folder)) if each.name not in keep]
        return [each.name for each in folders if not Cgroup(each).populated and Cgroup(each).remove(0.0)]

    def _folder(self, folder: Path) -> Path:
        return folder / f"puna-{self._node}"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """One engine's cgroup."""

    folder: Path

    @property
    def procs(self) -> Path:
        """A process that writes its pid (or `0`) into this file belongs to the cgroup, and so do its children."""
        return self.folder / "cgroup.procs"

    @property
    def pids(self) -> list[int]:
        """The processes in it."""
        return [int(word) for word in words(self.procs) if word.isdigit()]

    @property
    def populated(self) -> bool:
        """Whether a process is in it or below it."""
        return flat(self.folder / "cgroup.events").get("populated", len(self.pids)) != 0

    def figures(self) -> CgroupFigures:
        """What it tells now; nothing, once it is gone."""
        return figures(self.folder)

    def kill(self) -> None:
        """SIGKILL to all that is in it."""
        with suppress(OSError):
            _write(self.folder / "cgroup.kill", "1")
            return
        for pid in self.pids:  # Linux before 5.14
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def remove(self, limit_s: float = REMOVE_LIMIT_S) -> bool:
        """End what is left in it and remove it, waiting for that at most `limit_s`. False if it is still there."""
        if self.populated:
            self.kill()
        end = time.monotonic() + limit_s
        while not _removed(self.folder):
            if time.monotonic() >= end:
                log.warning("cgroup_stuck", extra={"event": "cgroup_stuck", "engine": self.folder.name})
                return False
            time.sleep(_POLL_S)
        return True


def settings(limits: CgroupLimits, disks: Iterable[str], controllers: Collection[str]) -> Iterator[tuple[str, str]]:
    """File and text for each limit, of the controllers that there are."""
    if "cpu" in controllers and limits.cpu_cores is not None:
        yield "cpu.max", f"{max(int(limits.cpu_cores * _PERIOD_US), _LEAST_QUOTA_US)} {_PERIOD_US}"
    if "memory" in controllers:
        # all processes of an engine go at once: half of one answers nobody
        yield "memory.oom.group", "1"
        if limits.memory_bytes is not None:
            yield "memory.max", str(limits.memory_bytes)
        if limits.swap_bytes is not None:
            yield "memory.swap.max", str(limits.swap_bytes)
    rates = {"rbps": limits.read_bytes_per_s, "wbps": limits.write_bytes_per_s}
    told = " ".join(f"{name}={value}" for name, value in rates.items() if value is not None)
    if "io" in controllers and told:
        yield from (("io.max", f"{disk} {told}") for disk in disks)


def disks_of(paths: Iterable[Path], devices: Path = BLOCK_DEVICES) -> list[str]:
    """The whole disks that hold `paths`, as `io.max` names them: a limit on a partition is refused. File systems that
    are on no disk (overlay, network, tmpfs, several disks at once) are left out."""
    found: dict[str, None] = {}
    for path in paths:
        with suppress(OSError):
            number = path.stat().st_dev
            found.setdefault(_whole_disk(f"{os.major(number)}:{os.minor(number)}", devices))
    return [name for name in found if name]


def _whole_disk(name: str, devices: Path) -> str:
    entry = devices / name
    if not entry.exists():
        return ""
    if (entry / "partition").exists():
        return next(iter(words(entry.resolve().parent / "dev")), "")
    return name


def is_root(folder: Path) -> bool:
    """The kernel's own root, which has no type. That of a container is none."""
    return not (folder / "cgroup.type").exists()


def _enable(folder: Path, controllers: Collection[str]) -> frozenset[str]:
    """One by one: a controller that cannot be had is no reason to be without the others. Raises `OSError` if none can
    be had."""
    enabled, refused = set[str](), OSError(errno.ENOENT, "no controller to enable")
    for name in sorted(controllers):
        try:
            _write(folder / "cgroup.subtree_control", f"+{name}")
            enabled.add(name)
        except OSError as error:
            refused = error
    if not enabled:
        raise refused
    return frozenset(enabled)


def _told(error: OSError, folder: Path) -> str:
    if error.errno == errno.EBUSY:
        others = len(words(folder / "cgroup.procs"))
        return f"{others} other processes share this process's cgroup, so it cannot be divided; {REMEDY}"
    return f"its cgroup cannot be divided ({error.strerror}); {REMEDY}"


def _set(file: Path, text: str) -> None:
    """A limit that the kernel does not take is told, and does not keep the engine from starting."""
    try:
        _write(file, text)
    except OSError as error:
        fields = {"event": "limit_refused", "engine": file.parent.name, "limit": file.name, "value": text}
        log.warning("limit_refused", extra=fields | {"reason": error.strerror})


def _removed(folder: Path) -> bool:
    try:
        for child in _children(folder):
            _removed(child)
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink())
    except OSError:
        return []


def _write(file: Path, text: str) -> None:
    """In one write(2), as the kernel wants it, and only into a file that is there."""
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
