"""Where the minders' sockets are: a private folder with a short path, for a unix socket's may not be long."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

PATH_LIMIT_BYTES: Final = 100
"""Less than any system allows (macOS 104, Linux 108)."""
_BACKLOG: Final = 8
_YOUNG_S: Final = 60.0
_ANSWER_S: Final = 1.0


class NoSocketFolder(OSError):
    """No folder is private and short enough. The text names those that were tried."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.strerror = text


def socket_path(tag: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Path of the socket of one minder; its folder is there, readable by nobody else. Raises `NoSocketFolder`."""
    tried: list[str] = []
    for folder in _folders(environ):
        path = folder / f"{tag}.sock"
        if len(os.fsencode(path)) > PATH_LIMIT_BYTES:
            tried.append(f"{folder} (too long a path)")
        elif (why := _unfit(folder)) is not None:
            tried.append(f"{folder} ({why})")
        else:
            return path
    raise NoSocketFolder(f"no place for an engine's socket: {', '.join(tried)}; set XDG_RUNTIME_DIR or TMPDIR")


def _folders(environ: Mapping[str, str]) -> Iterator[Path]:
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "puna"
    yield Path(tempfile.gettempdir()) / f"puna-{os.getuid()}"
    yield Path("/tmp") / f"puna-{os.getuid()}"  # noqa: S108 - the folder is made private and checked


def _unfit(folder: Path) -> str | None:
    """Make it. Why it cannot be used, if so: somebody else may have made it before us."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid():
        return "it belongs to somebody else"
    if state.st_mode & 0o077:
        return "others may look into it"
    return None


def sweep(environ: Mapping[str, str] = os.environ) -> int:
    """Remove sockets that minders left which were killed; returns how many. Young ones may not listen yet."""
    removed = 0
    for folder in {folder for folder in _folders(environ) if folder.is_dir() and _unfit(folder) is None}:
        for path in folder.glob("*.sock"):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > _YOUNG_S and not _answers(path):
                    path.unlink()
                    removed += 1
    return removed


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def listening(path: Path) -> socket.socket:
    """A socket that listens there, for this user alone. Raises `OSError`."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        door.bind(str(path))
        path.chmod(0o600)
        door.listen(_BACKLOG)
    except BaseException:
        door.close()
        raise
    return door
