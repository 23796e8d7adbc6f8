"""What a server says that it sends: checked against what was asked, before a byte of it is taken. Plain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from worker.sources import Changed, SourceError, Unreachable
from worker.transfer.connection import Head

_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,19})")


class RangesBroken(SourceError):
    """The server does not send the ranges that it is asked for: take the whole file instead."""

    code, retryable = "source_ranges_broken", True


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes of an answer. `end` and `size` are None where only the end of the body tells."""

    start: int
    end: int | None
    size: int | None
    partial: bool


def validator_of(head: Head) -> str | None:
    """What may stand in `If-Range`: a strong ETag. A date alone is too coarse to tell two contents apart."""
    etag = head.headers.get("etag", "")
    return etag if etag.startswith('"') and etag.endswith('"') and len(etag) > 2 else None


def span_of(head: Head, place: str, asked: tuple[int, int] | None) -> Span:
    """The bytes that follow a head. `asked`: the range in the request, if there was one.

    Raises `RangesBroken` when that cannot be what was asked for, `Unreachable` for a head that cannot be right.
    """
    if head.headers.get("content-encoding", "identity") not in ("identity", ""):
        raise Unreachable(f"{place}: sent compressed, which was not asked for")
    if head.status == 416:
        raise _unsatisfied(head, place)
    if head.status == 206:
        return _partial(head, place, asked)
    if head.status != 200:
        raise Unreachable(f"{place}: answered {head.status} to a GET")
    return Span(0, head.length, head.length, partial=False)


def _partial(head: Head, place: str, asked: tuple[int, int] | None) -> Span:
    text = head.headers.get("content-range", "")
    hit = _RANGE.fullmatch(text.strip())
    if hit is None or asked is None:
        raise RangesBroken(f"{place}: sent a part with the range {text[:60]!r}")
    start, end, size = int(hit[1]), int(hit[2]) + 1, None if hit[3] == "*" else int(hit[3])
    if start != asked[0] or not start < end <= asked[1] or (size is not None and end > size):
        raise RangesBroken(f"{place}: asked for the bytes {asked[0]}-{asked[1] - 1}, was sent {text[:60]!r}")
    if head.length is not None and head.length != end - start:
        raise RangesBroken(f"{place}: the range {text[:60]!r} came with a length of {head.length}")
    return Span(start, end, size, partial=True)


def _unsatisfied(head: Head, place: str) -> SourceError:
    hit = _UNSATISFIED.fullmatch(head.headers.get("content-range", "").strip())
    return Changed(f"{place}: has no such bytes{f', only {hit[1]} in all' if hit else ''}")
