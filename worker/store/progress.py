"""How far a download is, how fast it goes, and how long it will take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from schemas.model import CopyProgress

SMOOTHING_S: Final = 10.0
"""About so much of the past counts in the speed."""


@dataclass(slots=True)
class Meter:
    """Counts the bytes of one model's files. Times by a monotonic clock, handed in."""

    phase: str = "waiting"
    bytes_total: int | None = None
    bytes_done: int = 0
    files_total: int | None = None
    files_done: int = 0
    moves: int = 0
    """Another number whenever bytes are there that were not."""
    speed_bytes_per_s: float | None = None
    _at_s: float | None = None
    _moved: int = 0

    def there(self, bytes_: int) -> None:
        """Bytes that need not come: they are no part of the speed."""
        self.bytes_done += bytes_
        self.moves += 1

    def came(self, bytes_: int) -> None:
        """Bytes that came now; less than 0 when some did not hold."""
        self.bytes_done = max(self.bytes_done + bytes_, 0)
        self._moved += max(bytes_, 0)
        self.moves += 1

    def told(self, now_s: float) -> CopyProgress:
        """As it is now; the speed is of the time since the last call, smoothed."""
        if self._at_s is not None and now_s > self._at_s:
            took_s = now_s - self._at_s
            speed, share = self._moved / took_s, min(took_s / SMOOTHING_S, 1.0)
            known = self.speed_bytes_per_s
            self.speed_bytes_per_s = speed if known is None else known + (speed - known) * share
        if self._at_s is None or now_s > self._at_s:
            self._at_s, self._moved = now_s, 0
        return CopyProgress(
            phase=self.phase,
            bytes_total=self.bytes_total,
            bytes_done=self.bytes_done,
            files_total=self.files_total,
            files_done=self.files_done,
            speed_bytes_per_s=self.speed_bytes_per_s,
            eta_s=self._eta_s(),
        )

    def _eta_s(self) -> float | None:
        if self.bytes_total is None or not self.speed_bytes_per_s:
            return None
        return max(self.bytes_total - self.bytes_done, 0) / self.speed_bytes_per_s
