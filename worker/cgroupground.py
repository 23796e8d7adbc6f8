"""Whether this process's cgroup (version 2) may be divided, and where it is. Reads files and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc/self")
CONTROLLERS: Final = ("cpu", "memory", "io")
LEAF: Final = "worker"
REMEDY: Final = "with systemd, set Delegate=yes in the unit"


@dataclass(frozen=True, slots=True)
class Ground:
    """The cgroup that engines' cgroups may be made in; without a `folder`, `reason` says why there is none."""

    folder: Path | None = None
    controllers: frozenset[str] = frozenset()
    reason: str | None = None

    @property
    def delegated(self) -> bool:
        """Whether engines can have cgroups."""
        return self.folder is not None


def survey(proc: Path = PROC) -> Ground:
    """Where this process's cgroup is and whether it may be divided. Changes nothing."""
    own = _own_folder(proc)
    if isinstance(own, str):
        return Ground(reason=own)
    # a worker that was put into its leaf already, by an earlier life or by its service manager
    folder = own.parent if own.name == LEAF and _may_divide(own.parent) else own
    if not _may_divide(folder):
        return Ground(reason=f"cgroup v2 is not delegated to this process; {REMEDY}")
    controllers = frozenset(words(folder / "cgroup.controllers")) & frozenset(CONTROLLERS)
    if not controllers:
        return Ground(reason="its cgroup has none of the controllers cpu, memory and io (cgroup v1 may have them)")
    return Ground(folder, controllers)


def _own_folder(proc: Path) -> Path | str:
    """The folder of this process's cgroup, or why there is none."""
    mount = next(_mounts(proc / "mountinfo"), None)
    if mount is None:
        return "this system has no cgroup v2"
    lines = _lines(proc / "cgroup")
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    root, point = mount
    if path is None or ".." in path.split("/"):
        return "this process's cgroup is outside of what it can see"
    inside = _below(path, root)
    folder = point / inside.lstrip("/") if inside is not None else None
    if folder is None or not folder.is_dir():
        return f"this process's cgroup {path} is not among the mounted ones"
    return folder


def _below(path: str, root: str) -> str | None:
    """`path` as seen from a mount of the subtree `root`."""
    if root == "/" or path == root:
        return path if root == "/" else "/"
    return path.removeprefix(root) if path.startswith(f"{root}/") else None


def _mounts(file: Path) -> Iterator[tuple[str, Path]]:
    """Root and mount point of each cgroup v2 hierarchy, by the fields of proc_pid_mountinfo(5)."""
    for line in _lines(file):
        before, _, after = line.partition(" - ")
        fields = before.split()
        if after.split(maxsplit=1)[:1] == ["cgroup2"] and len(fields) >= 5:
            yield _unescaped(fields[3]), Path(_unescaped(fields[4]))


def _unescaped(field: str) -> str:
    for octal in ("040", "011", "012", "134"):
        field = field.replace(f"\\{octal}", chr(int(octal, 8)))
    return field


def _may_divide(folder: Path) -> bool:
    files = (folder / "cgroup.procs", folder / "cgroup.subtree_control")
    writable = os.access(folder, os.W_OK | os.X_OK) and all(os.access(file, os.W_OK) for file in files)
    return writable and not _kept_by_systemd(folder)


def _kept_by_systemd(folder: Path) -> bool:
    """Root may write everywhere; a unit that was not delegated is systemd's all the same."""
    if folder.suffix not in (".service", ".scope", ".slice") or os.geteuid() != 0:
        return False
    for name in ("user.delegate", "trusted.delegate"):
        with suppress(OSError):
            return os.getxattr(folder, name) != b"1"
    return True


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def words(file: Path) -> list[str]:
    """What stands in a file; nothing where there is none."""
    return " ".join(_lines(file)).split()
