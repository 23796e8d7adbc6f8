"""The frames of one stream that its reader has not credited yet, so that a broker may go and come in between.

Rules: every frame has the next `seq`; a frame leaves the window only by credit; `unsent` is where publishing goes on;
`rewind` makes all that is held unsent again.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from schemas.frame import encode_frame, marked_epoch

WINDOW_LIMIT_BYTES: Final = 1 << 20
"""Held bytes at which a stream's engine is no longer read."""


class Window:
    """Frames `first` to `next_seq - 1` of one epoch."""

    __slots__ = ("_epoch_text", "_frames", "epoch", "first", "held_bytes", "next_seq", "unsent")

    def __init__(self, epoch: int, first_seq: int = 0, *, mark: bytes = b"") -> None:
        self.epoch = epoch
        self._epoch_text = marked_epoch(epoch, mark)
        self.first = self.next_seq = self.unsent = first_seq
        self.held_bytes = 0
        self._frames: deque[bytes] = deque()

    @property
    def full(self) -> bool:
        """No more should be read before something is credited."""
        return self.held_bytes >= WINDOW_LIMIT_BYTES

    @property
    def has_room(self) -> bool:
        """Half of the window is free again: reading may go on."""
        return self.held_bytes <= WINDOW_LIMIT_BYTES // 2

    @property
    def empty(self) -> bool:
        """Everything is credited."""
        return self.first == self.next_seq

    def add(self, kind: bytes, payload: bytes) -> bytes:
        """The next frame's bytes, held and not yet sent."""
        raw = encode_frame(kind, self._epoch_text, self.next_seq, payload)
        self.next_seq += 1
        self.held_bytes += len(raw)
        self._frames.append(raw)
        return raw

    def waiting(self) -> list[bytes]:
        """What is held and not sent, oldest first."""
        return list(self._frames)[self.unsent - self.first :] if self.unsent < self.next_seq else []

    def rewind(self) -> None:
        """Nobody knows what arrived: all that is held is to be sent again."""
        self.unsent = self.first

    def credit(self, next_seq: int) -> bool:
        """The reader has everything before `next_seq`. False if that says nothing new or cannot be."""
        if not self.first < next_seq <= self.next_seq:
            return False
        for _ in range(next_seq - self.first):
            self.held_bytes -= len(self._frames.popleft())
        self.first = next_seq
        self.unsent = max(self.unsent, next_seq)
        return True
