"""What of a file is still to be asked for, handed out piece by piece from the front. Plain."""

from __future__ import annotations

from worker.transfer.intervals import Intervals


class Pieces:
    """Lowest bytes first, so that what comes is close together and digests can follow in memory."""

    def __init__(self, size: int, done: Intervals, piece_bytes: int) -> None:
        self.piece_bytes = piece_bytes
        """Of those that will be taken."""
        self._gaps = list(reversed(list(done.missing(size))))

    def __bool__(self) -> bool:
        return bool(self._gaps)

    def take(self) -> tuple[int, int] | None:
        """The next piece; None while all are handed out."""
        if not self._gaps:
            return None
        start, end = self._gaps.pop()
        cut = min(end, start + self.piece_bytes)
        if cut < end:
            self._gaps.append((cut, end))
        return start, cut

    def give_back(self, start: int, end: int) -> None:
        """These bytes of a piece did not come."""
        if start < end:
            self._gaps.append((start, end))
            self._gaps.sort(reverse=True)
