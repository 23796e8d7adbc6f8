"""Asking a vendor's program, from a thread: bounded in time and in output, and not asked again at once when it fails.

Programs of drivers hang when their GPU does. One that is past its time is killed with all that it started; if the
kernel does not let go of it, it is left behind and nobody waits.
"""

from __future__ import annotations

import logging
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Final, Protocol

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
OUTPUT_BYTES: Final = 4 << 20
RETRY_S: Final = 30.0
"""From a failure to the next try."""
_REAP_S: Final = 1.0


class ToolFailed(Exception):
    """The program gave no usable answer; the text says why."""


class Source(Protocol):
    """Something that gives text when asked."""

    def read(self) -> str | None:
        """The text of now; `None` where there is none."""
        ...


class Tool:
    """One program with its arguments. Several threads may read: one asks, the others wait for the same answer.

    An answer serves for `every_s`. `environment` is added to the worker's own.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        every_s: float = 0.0,
        timeout_s: float = TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._argv = tuple(argv)
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._environment = dict(environment or {})
        self._clock = clock
        self._text: str | None = None
        self._ask_again_at = float("-inf")
        self._failing = False
        self._lock = threading.Lock()

    def read(self) -> str | None:
        """The answer, at most `every_s` old. `None` if the program is not there, failed, or failed a moment ago."""
        with self._lock:
            return self._read()

    def _read(self) -> str | None:
        if self._clock() < self._ask_again_at:
            return self._text
        program = shutil.which(self._argv[0])
        try:
            self._text = self._ask(program) if program else None
        except ToolFailed as error:
            self._failed(error)
        else:
            self._answered(bool(program))
        return self._text

    def _ask(self, program: str) -> str:
        return output_of((program, *self._argv[1:]), self._timeout_s, self._environment)

    def _answered(self, there: bool) -> None:
        self._ask_again_at = self._clock() + (self._every_s if there else RETRY_S)
        if self._failing:
            log.info("tool_back", extra={"event": "tool_back", "tool": self._argv[0]})
        self._failing = False

    def _failed(self, error: ToolFailed) -> None:
        self._text = None
        self._ask_again_at = self._clock() + RETRY_S
        if not self._failing:
            fields = {"event": "tool_failed", "tool": " ".join(self._argv)[:200], "reason": str(error)}
            log.warning("tool_failed", extra=fields)
        self._failing = True


def output_of(argv: Sequence[str], timeout_s: float, environment: Mapping[str, str]) -> str:
    """Standard output of a program. Raises `ToolFailed`: it cannot be run, took too long, wrote too much or failed."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolFailed(f"cannot be run: {error.strerror}") from error
    try:
        deadline = time.monotonic() + timeout_s
        output = _read(process, deadline, timeout_s)
        code = _end(process, deadline, timeout_s)
    finally:
        _clear(process)
    text = output.decode(errors="replace")
    if code != 0:
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        raise ToolFailed(f"exit status {code}{': ' + first[:200] if first else ''}")
    return text


def _read(process: subprocess.Popen[bytes], deadline: float, timeout_s: float) -> bytes:
    stream = process.stdout
    if stream is None:
        raise ToolFailed("has no output")
    parts = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while part := _part(selector, stream, deadline, timeout_s):
            parts += part
            if len(parts) > OUTPUT_BYTES:
                raise ToolFailed(f"wrote more than {OUTPUT_BYTES} bytes")
    return bytes(parts)


def _part(selector: selectors.BaseSelector, stream: IO[bytes], deadline: float, timeout_s: float) -> bytes:
    left_s = deadline - time.monotonic()
    if left_s <= 0 or not selector.select(left_s):
        raise ToolFailed(f"gave no answer in {timeout_s:g} s")
    return os.read(stream.fileno(), 1 << 16)


def _end(process: subprocess.Popen[bytes], deadline: float, timeout_s: float) -> int:
    try:
        return process.wait(max(deadline - time.monotonic(), 0.01))
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"did not end in {timeout_s:g} s") from error


def _clear(process: subprocess.Popen[bytes]) -> None:
    """Nothing of it stays: it led its own session, so its group is what it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_REAP_S)
    if process.stdout is not None:
        process.stdout.close()
