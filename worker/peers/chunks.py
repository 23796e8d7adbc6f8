"""Which chunks of a file are there: the bits of one number. Plain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from schemas.peer import CHUNK_BYTES
from worker.transfer.intervals import Intervals


def count_of(size_bytes: int) -> int:
    """How many chunks a file has."""
    return -(-size_bytes // CHUNK_BYTES)


def all_of(size_bytes: int) -> int:
    """Every chunk of a file."""
    return (1 << count_of(size_bytes)) - 1


def span(chunk: int, size_bytes: int) -> tuple[int, int]:
    """Its first byte and the one after its last."""
    return chunk * CHUNK_BYTES, min((chunk + 1) * CHUNK_BYTES, size_bytes)


def within(done: Iterable[tuple[int, int]], size_bytes: int) -> int:
    """The chunks that lie wholly in intervals of bytes."""
    found = 0
    for start, end in done:
        last = count_of(size_bytes) if end >= size_bytes else end // CHUNK_BYTES
        found |= from_ranges([(count_of(start), last)])
    return found


def spans_of(chunks: int, size_bytes: int) -> Intervals:
    """The bytes of chunks."""
    return Intervals((first * CHUNK_BYTES, min(last * CHUNK_BYTES, size_bytes)) for first, last in to_ranges(chunks))


def each(chunks: int, most: int | None = None) -> Iterator[int]:
    """The numbers of the chunks, lowest first, `most` of them."""
    while chunks and most != 0:
        lowest = chunks & -chunks
        yield lowest.bit_length() - 1
        chunks ^= lowest
        most = most if most is None else most - 1


def to_ranges(chunks: int) -> list[tuple[int, int]]:
    """Runs of chunks: first, and the one after the last."""
    runs, at = list[tuple[int, int]](), 0
    while chunks:
        gap = (chunks & -chunks).bit_length() - 1
        chunks, at = chunks >> gap, at + gap
        length = (~chunks & (chunks + 1)).bit_length() - 1
        runs.append((at, at + length))
        chunks, at = chunks >> length, at + length
    return runs


def from_ranges(runs: Iterable[tuple[int, int]], count: int | None = None) -> int:
    """The chunks of runs; with `count` none beyond it."""
    found = 0
    for first, last in runs:
        last = last if count is None else min(last, count)
        if 0 <= first < last:
            found |= (1 << last) - (1 << first)
    return found
