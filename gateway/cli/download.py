"""One file from the network to its place on disk: resumed, checked by sha256, fetched once by many, whole or not there.

The rules: bytes go to `<name>.part`; a lock file makes others wait and then find the file done; a partial file is only
continued, never trusted; the place itself appears by a rename after the sum is right and the bytes are on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from gateway.cli.exits import FAILURE, NOT_ALLOWED, NOT_FOUND, CliError
from gateway.cli.folders import shown
from gateway.cli.say import Teller

_BLOCK_BYTES: Final = 1 << 20
_SILENCE_S: Final = 30.0
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to fetch. `token` goes to the first host only, never along with a redirect."""

    url: str
    sha256: str
    size_bytes: int
    token: str | None = None


@contextlib.contextmanager
def placing(target: Path, teller: Teller) -> Generator[bool]:
    """Hold the right to write `target`; yields whether it is still to be written. Waits for another who has it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(target.with_name(f"{target.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise CliError(
            f"{shown(target.parent)} cannot be written ({error.strerror}); set PUNA_CACHE_DIR to a folder that can"
        ) from error
    try:
        _wait_for(lock, target, teller)
        yield not target.exists()
    finally:
        os.close(lock)


def _wait_for(lock: int, target: Path, teller: Teller) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        teller.line(f"another process fetches {target.name}; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def place(part: Path, target: Path, sha256: str, found: str) -> None:
    """Move a finished partial file to its place. Raises `CliError`, and removes the bytes, if the sum is wrong."""
    if found != sha256:
        part.unlink()
        raise CliError(f"{target.name}: the bytes are damaged (sha256 {found[:12]}…, not {sha256[:12]}…); try again")
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def fetch(file: RemoteFile, target: Path, teller: Teller) -> Path:
    """The file at `target`, fetched unless it is there. Raises `CliError`, which says what to do."""
    with placing(target, teller) as wanted:
        if wanted:
            _room_for(file, target)
            part = target.with_name(f"{target.name}.part")
            place(part, target, file.sha256, _transfer(file, part, teller))
    return target


def _room_for(file: RemoteFile, target: Path) -> None:
    space = os.statvfs(target.parent)
    free = space.f_bavail * space.f_frsize
    if free < file.size_bytes:
        raise CliError(
            f"{target.name} needs {file.size_bytes / 1e9:.1f} GB and {shown(target.parent)} has {free / 1e9:.1f} GB "
            "free; make room, or set PUNA_CACHE_DIR to a larger disk"
        )


def _transfer(file: RemoteFile, part: Path, teller: Teller) -> str:
    progress = teller.progress(f"fetching {part.stem}", file.size_bytes)
    reason = ""
    for _ in range(_TRIES):
        digest, done = _sum_of(part)
        if done == file.size_bytes:
            return digest.hexdigest()
        try:
            _append(file, part, done, progress.at)
        except urllib.error.HTTPError as error:
            _refused(error, part.stem)
            reason = f"HTTP {error.code}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error)
        else:
            reason = "the connection ended early"
    digest, done = _sum_of(part)
    if done != file.size_bytes:
        raise CliError(f"{part.stem} could not be fetched in {_TRIES} tries ({reason}); run the same again to go on")
    return digest.hexdigest()


def _append(file: RemoteFile, part: Path, done: int, report: Callable[[int], None]) -> None:
    with open_url(file.url, token=file.token, start=done, timeout_s=_SILENCE_S) as answer:
        whole = answer.status != http.client.PARTIAL_CONTENT
        with part.open("wb" if whole else "ab") as out:
            done = 0 if whole else done
            while done < file.size_bytes and (block := answer.read(min(_BLOCK_BYTES, file.size_bytes - done))):
                out.write(block)
                done += len(block)
                report(done)


def open_url(
    url: str, *, token: str | None = None, start: int = 0, timeout_s: float, method: str = "GET"
) -> http.client.HTTPResponse:
    """An open HTTP answer. The token is sent to this host and not to where it redirects. Raises `OSError`."""
    if not url.startswith(("https://", "http://")):
        raise CliError(f"{url!r} is no http address")
    request = urllib.request.Request(url, method=method, headers={"User-Agent": "puna"})  # noqa: S310  checked above
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if start:
        request.add_header("Range", f"bytes={start}-")
    return urllib.request.urlopen(request, timeout=timeout_s)  # noqa: S310  checked above


def _sum_of(part: Path) -> tuple[hashlib._Hash, int]:  # pyright: ignore[reportPrivateUsage]
    digest = hashlib.sha256()
    if not part.exists():
        return digest, 0
    with part.open("rb") as file:
        done = copy_summed(file, None, digest.update)
    return digest, done


def copy_summed(source: IO[bytes], out: IO[bytes] | None, update: Callable[[bytes], None]) -> int:
    """Read all of `source` through `update`, into `out` if given; returns how many bytes it was."""
    done = 0
    while block := source.read(_BLOCK_BYTES):
        update(block)
        done += len(block)
        if out is not None:
            out.write(block)
    return done


def _refused(error: urllib.error.HTTPError, name: str) -> None:
    """Raises `CliError` for an answer that another try will not change."""
    if error.code in (401, 403):
        raise CliError(
            f"{name}: not allowed (HTTP {error.code}); set HF_TOKEN to a token that may read it", NOT_ALLOWED
        )
    if error.code == 404:
        raise CliError(f"{name}: not found at its address any more", NOT_FOUND)
    if 400 <= error.code < 500 and error.code not in (408, 416, 429):
        raise CliError(f"{name}: refused with HTTP {error.code}", FAILURE)
