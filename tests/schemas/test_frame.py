"""Frames: what is encoded comes back, and nothing else is taken for a frame."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import frame
from schemas.frame import BadFrame, Frame, decode_frame, encode_frame


@given(st.sampled_from(sorted(frame.KINDS)), st.integers(1, 10**6), st.integers(0, 10**9), st.binary(max_size=200))
def test_a_frame_comes_back_with_its_payload_untouched(kind: bytes, epoch: int, seq: int, payload: bytes) -> None:
    assert decode_frame(encode_frame(kind, epoch, seq, payload)) == Frame(kind, epoch, seq, payload)


def test_the_head_is_one_ascii_line() -> None:
    assert encode_frame(frame.DATA, 1, 17, b"data: {}\n\n") == b"data 1 17\ndata: {}\n\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"data 1 2",
        b"data 1\n",
        b"what 1 2\n",
        b"data x 2\n",
        b"data 1 2 3\n",
        b"\n",
        b"data 1 " + b"9" * 80 + b"\n",
    ],
)
def test_what_is_no_frame_is_refused(raw: bytes) -> None:
    with pytest.raises(BadFrame):
        decode_frame(raw)


@given(st.binary(max_size=100))
def test_no_bytes_break_the_decoder(raw: bytes) -> None:
    try:
        assert decode_frame(raw).kind in frame.KINDS
    except BadFrame:
        return
