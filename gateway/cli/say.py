"""What a person is told while something runs: on stderr, so that stdout stays data."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rich.console import Console

_EACH_S: Final = 0.1
_STEPS: Final = 4


class Teller:
    """Prints lines and progress to stderr, or above the live table while one is shown."""

    def __init__(self) -> None:
        self._console: Console | None = None

    def attach(self, console: Console | None) -> None:
        """While a live table owns the terminal, lines go through its console."""
        self._console = console

    def line(self, text: str) -> None:
        """One line."""
        if self._console is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, label: str, total_bytes: int) -> ByteProgress:
        """A line that shows how far something is."""
        return ByteProgress(label, total_bytes, live=sys.stderr.isatty())


class ByteProgress:
    """Bytes done of bytes to do: one moving line on a terminal, a line a quarter otherwise."""

    def __init__(self, label: str, total_bytes: int, *, live: bool) -> None:
        self._label, self._total, self._live = label, max(total_bytes, 1), live
        self._next_at = 0.0
        self._next_step = 1

    def at(self, done_bytes: int) -> None:
        """So many bytes are done."""
        if self._live and (done_bytes >= self._total or time.monotonic() >= self._next_at):
            self._next_at = time.monotonic() + _EACH_S
            end = "\n" if done_bytes >= self._total else ""
            print(f"\r{self._text(done_bytes)}", end=end, file=sys.stderr, flush=True)
        elif not self._live and done_bytes * _STEPS >= self._total * self._next_step:
            self._next_step = done_bytes * _STEPS // self._total + 1
            print(self._text(done_bytes), file=sys.stderr, flush=True)

    def _text(self, done: int) -> str:
        return f"{self._label}: {done / 1e6:.0f} of {self._total / 1e6:.0f} MB ({done * 100 // self._total} %)"
