"""The last lines an engine wrote, without what its clients sent.

Until an engine is ready nobody has sent it anything, so all it says is kept. From then on its errors may quote a
request (`got exception: … last read: 'the prompt'`), so a line is kept only if it has a shape that is known to hold
numbers alone; the rest is counted.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

log = logging.getLogger(__name__)

LINE_LIMIT_CHARS: Final = 500
RING_BYTES: Final = 10 << 20
BATCH_LIMIT_LINES: Final = 256
"""What one call of a follower gets at most."""
_LINE_OVERHEAD_BYTES: Final = 64
"""What a kept line takes besides its text."""
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

Follower = Callable[[Sequence[str]], None]


class Following:
    """One follower of a log; `close` ends it, and may be called twice."""

    def __init__(self, callback: Follower, followers: list[Following]) -> None:
        self.callback = callback
        self._followers = followers

    def close(self) -> None:
        """Hear no more."""
        if self in self._followers:
            self._followers.remove(self)


class EngineLog:
    """A ring of lines, at most `limit_bytes` of them, fed with raw bytes, over all lives of one engine."""

    def __init__(self, limit_bytes: int = RING_BYTES) -> None:
        self._lines: deque[str] = deque()
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._secret = ""
        self._partial: dict[int, bytes] = {}
        self._private = False
        self._followers: list[Following] = []
        self._lines_total = self._begun = 0
        self.withheld = 0
        """Lines that could have held a request and were dropped."""
        self.lost_bytes = 0
        """Output that was written faster than it could be taken in."""

    def feed(self, stream: int, data: bytes) -> None:
        """More output of one stream (1 or 2), cut anywhere."""
        *whole, rest = (self._partial.get(stream, b"") + data).split(b"\n")
        self._partial[stream] = rest[:_PARTIAL_LIMIT_BYTES]
        kept = [line for raw in whole if (line := self._kept(raw.decode(errors="replace").rstrip())) is not None]
        for line in kept:
            self._add(line)
        if kept and self._followers:
            self._tell(kept)

    def end(self, stream: int) -> None:
        """The stream has ended, perhaps in the middle of a line."""
        self.feed(stream, b"\n")

    def lost(self, count_bytes: int) -> None:
        """Some output is missing here."""
        self.lost_bytes += count_bytes
        self._partial.clear()

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
        newest = list(itertools.islice(reversed(self._lines), max(0, count)))
        return newest[::-1]

    def follow(self, callback: Follower) -> Following:
        """Call back with each batch of lines from now on, at most `BATCH_LIMIT_LINES` at once, from the event loop.

        A callback that raises is logged and hears no more.
        """
        following = Following(callback, self._followers)
        self._followers.append(following)
        return following

    def _kept(self, line: str) -> str | None:
        if not line.strip():
            return None
        if self._private and not _HARMLESS.fullmatch(line):
            self.withheld += 1
            return None
        return (line.replace(self._secret, "***") if self._secret else line)[:LINE_LIMIT_CHARS]

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._lines_total += 1
        self._bytes += len(line) + _LINE_OVERHEAD_BYTES
        while self._bytes > self._limit_bytes:
            self._bytes -= len(self._lines.popleft()) + _LINE_OVERHEAD_BYTES

    def _tell(self, lines: list[str]) -> None:
        for following in list(self._followers):
            try:
                for begin in range(0, len(lines), BATCH_LIMIT_LINES):
                    following.callback(lines[begin : begin + BATCH_LIMIT_LINES])
            except Exception:  # a follower's fault must not end the engine's log
                log.exception("log_follower_failed", extra={"event": "log_follower_failed"})
                following.close()
