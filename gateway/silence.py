"""Two clocks of a stream: has its worker been silent too long, and is the client due a sign of life.

Both live on what passes anyway (numbers that grow), so that a frame costs them nothing.
"""

from __future__ import annotations

from schemas.frame import LOST_AFTER_S


class Silence:
    """How long no frame has come. Time is counted in ticks of a loop that listens: one that stood still heard nothing,
    and that is no fault of the worker."""

    __slots__ = ("_heard_seq", "_quiet_s")

    def __init__(self) -> None:
        self._heard_seq = 0
        self._quiet_s = 0.0

    def broken(self, next_seq: int) -> None:
        """The worker was heard, or may speak anew."""
        self._heard_seq, self._quiet_s = next_seq, 0.0

    def too_long(self, next_seq: int, step_s: float) -> bool:
        """`step_s` have passed and `next_seq` is expected now: whether the worker is to be taken for lost."""
        if next_seq != self._heard_seq:
            self.broken(next_seq)
            return False
        self._quiet_s += step_s
        return self._quiet_s >= LOST_AFTER_S


class KeepAlive:
    """When a stream that sends nothing is due a comment."""

    __slots__ = ("_bytes", "_due_at", "_every_s")

    def __init__(self, every_s: float, now: float) -> None:
        self._every_s = every_s
        self._due_at = now + every_s
        self._bytes = 0

    def due(self, bytes_out: int, now: float) -> bool:
        """Whether to send one now; then the next is due a whole period later."""
        if bytes_out == self._bytes and now < self._due_at:
            return False
        idle = bytes_out == self._bytes
        self._bytes = bytes_out
        self._due_at = now + self._every_s
        return idle
