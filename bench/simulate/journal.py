"""What happened in a simulation, one JSON object a line: the truth that benches and tests look at.

Times are nanoseconds of the machine's monotonic clock, which all processes of one machine share.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson


class Journal:
    """Writes each line at once, so that a process that is frozen or killed has told all. No path: kept nowhere."""

    def __init__(self, path: Path | None = None) -> None:
        self._file: BinaryIO | None = path.open("ab", buffering=0) if path else None

    def tell(self, event: str, **facts: Any) -> None:
        """One line. `event` is `load`, `ready`, `gone`, `crash`, `hang`, `begin`, `end` or `cut`."""
        if self._file is not None:
            self._file.write(orjson.dumps({"at": time.monotonic_ns(), "event": event} | facts) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def read(*paths: Path) -> list[dict[str, Any]]:
    """All lines of these files in the order of their times. A line that is being written is left out."""
    lines: list[dict[str, Any]] = []
    for path in paths:
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        lines += [orjson.loads(line) for line in whole.splitlines()]
    return sorted(lines, key=lambda line: line["at"])
