"""Where a stream is cut, what its end tells, and which frames are held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.frame import DATA, decode_frame
from worker.sse import Tail, cut, pieces
from worker.window import WINDOW_LIMIT_BYTES, Window


@given(st.lists(st.text("ab\n", max_size=8), max_size=20), st.binary(max_size=200))
def test_what_is_cut_off_is_whole_events_and_nothing_is_lost(words: list[str], tail: bytes) -> None:
    source = "".join(words).encode() + tail
    out, rest = b"", b""
    for start in range(0, len(source), 3):
        ready, rest = cut(rest, source[start : start + 3])
        assert ready == b"" or ready.endswith(b"\n\n")
        out += ready
    assert out + rest == source
    assert b"\n\n" not in rest


@given(st.binary(max_size=300), st.integers(1, 50))
def test_pieces_join_to_the_whole(data: bytes, limit: int) -> None:
    parts = pieces(data, limit)
    assert b"".join(parts) == data
    assert all(len(part) <= limit for part in parts)


def test_the_end_of_a_stream_tells_usage_and_timings() -> None:
    tail = Tail()
    tail.add(b'data: {"choices":[],"usage":{"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":1}}')
    tail.add(b',"timings": {"predicted_n": 3}}\n\ndata: [DONE]\n\n')
    assert tail.is_whole("chat")
    assert tail.facts() == {
        "usage": {"completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
        "timings": {"predicted_n": 3},
    }


def test_a_text_that_looks_like_usage_is_not_taken_for_it() -> None:
    tail = Tail()
    tail.add(rb'data: {"content":"\"usage\":{\"completion_tokens\":9}"}' + b"\n\n")
    assert tail.facts() == {}
    assert not tail.is_whole("completions")
    assert tail.is_whole("embeddings")


def test_frames_are_numbered_and_held_until_credited() -> None:
    window = Window(epoch=2, first_seq=1)
    raws = [window.add(DATA, b"x%d" % number) for number in range(4)]
    assert [decode_frame(raw).seq for raw in raws] == [1, 2, 3, 4]
    window.unsent = window.next_seq
    assert window.waiting() == []
    assert window.credit(3)
    assert not window.credit(2)
    assert not window.credit(9)
    window.rewind()
    assert window.waiting() == raws[2:]
    assert window.credit(5)
    assert (window.empty, window.held_bytes, window.waiting()) == (True, 0, [])


def test_credit_for_what_was_not_sent_again_moves_the_sending_on() -> None:
    window = Window(epoch=1)
    raws = [window.add(DATA, b"") for _ in range(3)]
    window.credit(2)
    assert window.waiting() == raws[2:]


def test_a_window_fills_and_makes_room_at_half() -> None:
    window = Window(epoch=1)
    while not window.full:
        window.add(DATA, b"." * 65536)
    assert window.held_bytes >= WINDOW_LIMIT_BYTES
    window.credit(window.next_seq // 2 - 1)
    assert not window.has_room
    window.credit(window.next_seq)
    assert window.has_room
