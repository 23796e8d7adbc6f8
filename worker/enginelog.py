"""The last lines an engine wrote, without what its clients sent.

Until an engine is ready nobody has sent it anything, so all it says is kept. From then on its errors may quote a
request (`got exception: … last read: 'the prompt'`), so a line is kept only if it has a shape that is known to hold
numbers alone; the rest is counted.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Final

LINE_LIMIT_CHARS: Final = 500
_PARTIAL_LIMIT_BYTES: Final = 4096
"""What is kept of a line before its end comes: the beginning, which shows what kind of line it is."""

_STAMP: Final = r"(?:[\d.:]+ )?(?:[DIWE] +)?"
_SHAPES: Final = (
    r"slot +\w+: id +-?\d+ \| task -?\d+ \| [-\d. a-z_()/=,:%]*",
    r"srv +\S+: (?:all slots are idle|unauthorized: Invalid API Key|cleaning up before exit\.*)",
    r"srv +log_server_r: (?:done )?request: (?:GET|POST) /[\w/.-]{0,60} [\d.]+ \d+",
    r"\S{1,200}:\d+: GGML_ASSERT\([^'\"]{1,200}\) failed",
    r"(?:CUDA|ROCm|HIP|SYCL|Vulkan|Metal) error: [a-z ]{1,60}",
    r"(?:ggml|llama)_\w{1,60}: (?:failed to (?:allocate|decode|compute|find)|out of memory)[\w ()=%,.-]{0,80}",
    r"terminate called after throwing an instance of '[\w:]{1,60}'",
    r" +what\(\): +std::bad_alloc",
)
_HARMLESS: Final = re.compile(f"{_STAMP}(?:{'|'.join(_SHAPES)})")


class EngineLog:
    """A ring of lines, fed with raw bytes, over all lives of one engine."""

    def __init__(self, limit_lines: int = 1000, *, on_line: Callable[[str], None] | None = None) -> None:
        self._lines: deque[str] = deque(maxlen=limit_lines)
        self._secret = ""
        self._partial: dict[int, bytes] = {}
        self._private = False
        self._on_line = on_line
        self._lines_total = self._begun = 0
        self.withheld = 0
        """Lines that could have held a request and were dropped."""

    def feed(self, stream: int, data: bytes) -> None:
        """More output of one stream (1 or 2), cut anywhere."""
        *whole, rest = (self._partial.get(stream, b"") + data).split(b"\n")
        self._partial[stream] = rest[:_PARTIAL_LIMIT_BYTES]
        for raw in whole:
            self._take(raw.decode(errors="replace").rstrip())

    def end(self, stream: int) -> None:
        """The stream has ended, perhaps in the middle of a line."""
        self.feed(stream, b"\n")

    def requests_begin(self) -> None:
        """From here on the output may quote requests."""
        self._private = True

    def begin(self, *, secret: str) -> None:
        """A new process begins: nobody has sent it anything. `secret` is struck out wherever it shows."""
        self._secret = secret
        self._private = False
        self._partial.clear()
        self._begun = self._lines_total

    def life(self, count: int) -> list[str]:
        """The last lines of the present process, oldest first."""
        return self.tail(min(count, self._lines_total - self._begun))

    def tail(self, count: int) -> list[str]:
        """The last lines, oldest first."""
        return list(self._lines)[-count:] if count > 0 else []

    def _take(self, line: str) -> None:
        if not line.strip():
            return
        if self._private and not _HARMLESS.fullmatch(line):
            self.withheld += 1
            return
        kept = (line.replace(self._secret, "***") if self._secret else line)[:LINE_LIMIT_CHARS]
        self._lines.append(kept)
        self._lines_total += 1
        if self._on_line:
            self._on_line(kept)
