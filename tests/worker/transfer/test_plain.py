"""What needs no network: intervals, pieces, limits, waits, heads."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.settings import settings_from
from worker.sources import Changed, SourceError, Unreachable, origin_of
from worker.transfer.backoff import ASKED_LONGEST_S, LONGEST_S, Backoff, retry_after_s
from worker.transfer.connection import Head
from worker.transfer.dial import Origin
from worker.transfer.intervals import Intervals
from worker.transfer.limits import Limits, TokenBucket
from worker.transfer.pieces import Pieces
from worker.transfer.ranged import RangesBroken, span_of, validator_of
from worker.transfer.underway import memory_bytes, piece_bytes, system_bytes

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
    assert Backoff(10.0, 8).failed(0.5, retry_after_s=0.0) == 5.0


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


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Hub.Example/a/b?c#d", "https://hub.example"),
        ("https://hub.example:443/", "https://hub.example"),
        ("http://hub.example:443/", "http://hub.example:443"),
        ("http://user:word@hub.example:80/", "http://hub.example"),
        ("http://[::1]:8080/x", "http://[::1]:8080"),
        ("http://[2001:DB8::1]/x", "http://[2001:db8::1]"),
    ],
)
def test_an_origin_has_one_name_wherever_it_is_asked_for(url, origin):
    assert origin_of(url) == origin
    assert str(Origin.of(url)) == origin


@given(st.integers(0, 1 << 42), st.integers(1, 32), st.floats(0, 2), st.integers(4096, 1 << 25))
def test_what_is_under_way_is_a_hundredth_of_a_file_where_the_way_is_short(size, connections, way_s, most):
    memory, system = memory_bytes(size, 4 << 20), system_bytes(size, connections, way_s, most)
    assert (512 << 10) <= memory <= (4 << 20)
    if system is None:
        assert way_s > 0
        return
    assert system <= most
    if size >= 100 << 20 and connections <= 4 and way_s < 50e-6:
        assert memory + 2 * system * connections <= max(size / 100, (512 << 10) + connections * (256 << 10))


def test_where_the_way_is_long_or_not_known_the_system_finds_its_buffers_itself():
    assert system_bytes(1 << 30, 4, 0.05, 212_992) is None
    assert system_bytes(1 << 30, 4, None, 212_992) is None
    assert system_bytes(1 << 30, 4, 0.0001, 212_992) == 212_992
    assert system_bytes(200 << 20, 4, 0.00003, 212_992) == 128 << 10


def test_pieces_are_small_where_requests_cost_nothing_and_large_on_a_long_way():
    most = 64 << 20
    assert piece_bytes(1 << 30, 0.0, most) == 4 << 20
    assert piece_bytes(8 << 30, 0.0, most) == 32 << 20
    assert piece_bytes(40 << 30, 0.0, most) == most
    assert piece_bytes(1 << 30, 0.1, most) == most
    assert piece_bytes(1 << 30, None, most) == most
    assert piece_bytes(1 << 30, 0.0, 1 << 20) == 1 << 20


def test_the_profile_for_large_fleets_is_one():
    path = Path(__file__).parents[3] / "deploy" / "profiles" / "large-cluster.yaml"
    found = settings_from(path, {}, {}).downloads
    assert (found.num_download_worker, found.hf_max_retries, found.hf_retry_interval_s, found.concurrency) == (
        2,
        15,
        30,
        3,
    )
