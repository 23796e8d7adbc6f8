"""The record of a running `puna up`: one a state folder, locked while it lives, read by the other commands."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

from gateway.cli.exits import CliError
from gateway.cli.folders import shown

_RECORD: Final = "up.json"
_LOCK: Final = "up.lock"


@contextlib.contextmanager
def only_one(state_dir: Path) -> Generator[None]:
    """Hold the state folder. Raises `CliError` if a `puna up` has it already or it cannot be written."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CliError(
            f"{shown(state_dir)} cannot be written ({error.strerror}); choose another with --state-dir"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise CliError(
            f"a `puna up` runs already with {shown(state_dir)}; see it with `puna ps`, end it with Ctrl-C there, "
            "or give this one a folder of its own with --state-dir DIR"
        ) from error
    try:
        yield
    finally:
        (state_dir / _RECORD).unlink(missing_ok=True)
        os.close(lock)


def write_record(state_dir: Path, facts: Mapping[str, Any]) -> None:
    """Put the record where other commands find it. It holds the NATS password, so only the user may read it."""
    beside = state_dir / f"{_RECORD}.new"
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"pid": os.getpid(), **facts}, file)
    beside.replace(state_dir / _RECORD)


def read_record(state_dir: Path) -> dict[str, Any] | None:
    """What the `puna up` that runs on this folder said; `None` if there is none. A record left by a crash is none."""
    try:
        lock = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(state_dir / _RECORD)
    finally:
        os.close(lock)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # it is still starting, or belongs to another user
        return None
