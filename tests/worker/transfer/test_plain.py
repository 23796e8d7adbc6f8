"""What needs no network: intervals, pieces, limits, waits, heads."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sources import Changed, SourceError, Unreachable
from worker.transfer.backoff import ASKED_LONGEST_S, LONGEST_S, Backoff, retry_after_s
from worker.transfer.connection import Head
from worker.transfer.intervals import Intervals
from worker.transfer.limits import Limits, TokenBucket
from worker.transfer.pieces import Pieces
from worker.transfer.ranged import RangesBroken, span_of, validator_of

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=30)


@given(SPANS)
def test_intervals_are_as_a_set_of_bytes(spans):
    held, found = set(), Intervals()
    for start, end in spans:
        held |= set(range(start, end))
        found.add(start, end)
    assert {at for start, end in found for at in range(start, end)} == held
    assert found.size == len(held)
    missing = {at for start, end in found.missing(50) for at in range(start, end)}
    assert missing == set(range(50)) - held
    for start in range(0, 60, 7):
        end = start
        while end in held:
            end += 1
        assert found.reach(start) == end
    assert {at for start, end in found.cut(20) for at in range(start, end)} == {at for at in held if at < 20}
    ends = [edge for span in found for edge in span]
    assert ends == sorted(set(ends))


@given(SPANS, st.integers(1, 20), st.data())
def test_pieces_are_all_of_what_is_missing_once(spans, piece, data):
    done = Intervals(spans)
    pieces, came = Pieces(50, done, piece), Intervals()
    while (span := pieces.take()) is not None:
        start, end = span
        assert end - start <= max(piece, 1)
        stop = data.draw(st.integers(start, end))
        if stop == start:
            stop += 1
        came.add(start, stop)
        pieces.give_back(stop, end)
    assert sorted({*range(50)} - {at for s, e in done for at in range(s, e)}) == [
        at for s, e in came for at in range(s, e)
    ]


def test_a_bucket_keeps_to_its_rate_however_it_is_asked():
    now = [0.0]
    bucket = TokenBucket(1000, lambda: now[0])
    total = 0
    for count in (1, 5000, 10, 300) * 20:
        now[0] += bucket.take(count)
        total += count
    assert now[0] == pytest.approx(total / 1000, rel=0.02)


def test_a_clock_that_jumps_back_gives_nothing_and_takes_nothing():
    now = [100.0]
    bucket = TokenBucket(1000, lambda: now[0])
    now[0] = 50.0
    assert bucket.take(1000) == pytest.approx(1.0)
    now[0] = 51.0
    assert bucket.take(0) == 0.0


def test_limits_are_chosen_by_scheme_and_by_host():
    limits = Limits(None, {"hf": 1 << 20, "files.lan": 2048})
    assert limits.share("hf", "https://x/y").piece_bytes == (1 << 20) // 20
    assert limits.share("https", "https://files.lan:8443/y").piece_bytes == 4096
    assert limits.share("https", "https://x/y").piece_bytes is None


def test_waits_grow_are_spread_and_end():
    backoff = Backoff(10.0, 8)
    waits = [backoff.failed(1.0) for _ in range(9)]
    assert waits == [10, 20, 40, 80, 160, LONGEST_S, LONGEST_S, LONGEST_S, None]
    backoff.progress()
    assert backoff.failed(0.0) == 0.0
    assert backoff.failed(0.5, retry_after_s=100.0) == 105.0
    assert backoff.failed(0.5, retry_after_s=301.0) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("99999999999999999999", ASKED_LONGEST_S),
        ("Sat, 21 Nov 2026 12:01:00 GMT", 60),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0),
        ("Saturday, 21-Nov-26 12:01:00 GMT", 60),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_both_forms_of_retry_after_are_read(text, seconds):
    assert retry_after_s(text, datetime(2026, 11, 21, 12, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("status", "headers", "length", "error"),
    [
        (206, {}, 10, RangesBroken),
        (206, {"content-range": "bytes 0-9/100"}, 10, RangesBroken),
        (206, {"content-range": "bytes 10-19/15"}, 10, RangesBroken),
        (206, {"content-range": "bytes 10-29/100"}, 20, RangesBroken),
        (206, {"content-range": "bytes 10-19/100"}, 11, RangesBroken),
        (206, {"content-range": "bytes 19-10/100"}, 10, RangesBroken),
        (416, {"content-range": "bytes */7"}, 0, Changed),
        (204, {}, 0, Unreachable),
        (200, {"content-encoding": "gzip"}, 10, Unreachable),
    ],
)
def test_heads_that_cannot_be_right_are_refused_before_a_byte_is_taken(status, headers, length, error):
    with pytest.raises(error) as caught:
        span_of(Head(status, headers, length), "model.gguf", (10, 20))
    assert isinstance(caught.value, SourceError)


def test_only_a_strong_etag_stands_in_if_range():
    for etag, found in (('"a"', '"a"'), ('W/"a"', None), ("", None), ('"', None), ("a", None)):
        assert validator_of(Head(200, {"etag": etag}, 1)) == found
