"""The request reader alone, without a socket: any bytes, cut anywhere."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import PunaError
from web.limits import Limits
from web.message import Request
from web.reader import RequestReader

LIMITS = Limits(header_bytes=512, headers=16, body_bytes=256)
PIECES = [
    b"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
    b"GET /a?b=%41 HTTP/1.1\r\nhost: h\r\nx: y\r\nx: z\r\n\r\n",
    b"POST /b HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc",
    b"POST /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\nt: 1\r\n\r\n",
    b"HEAD / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    b"\r\n",
]
NOISE = [
    b"GET / HTTP/1.1\r\n",
    b"host: h\r\n",
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"expect: 100-continue\r\n",
    b"connection: upgrade\r\nupgrade: x\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b" ",
    b"\x00",
    b"\r",
    b"\n",
    b"a" * 300,
]


class Receiver:
    """Notes what the reader tells, and holds it after each request if it is told to."""

    def __init__(self, *, hold: bool = False) -> None:
        self.requests: list[Request] = []
        self.refusals: list[PunaError] = []
        self._hold = hold

    def received(self, request: Request) -> bool:
        assert not self.refusals
        self.requests.append(request)
        return not self._hold

    def refused(self, error: PunaError) -> None:
        self.refusals.append(error)

    def expects_continue(self) -> None:
        assert not self.refusals


def read(data: bytes, cuts: list[int], *, hold: bool = False) -> Receiver:
    receiver = Receiver(hold=hold)
    reader = RequestReader(LIMITS, "peer", receiver)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        reader.feed(data[start:end])
        while hold and reader.unread and not reader.ended and _resumed(reader, receiver):
            pass
    return receiver


def _resumed(reader: RequestReader, receiver: Receiver) -> bool:
    before = len(receiver.requests)
    reader.resume()
    return len(receiver.requests) > before


@given(st.lists(st.sampled_from(PIECES), max_size=6), st.lists(st.integers(0, 1000), max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_requests_are_the_same_wherever_the_bytes_are_cut(pieces, cuts, hold):
    data = b"".join(pieces)
    whole = read(data, [])
    assert read(data, cuts, hold=hold).requests == whole.requests
    assert len(whole.requests) == sum(piece != b"\r\n" for piece in pieces)
    assert whole.refusals == []


@given(
    st.lists(st.one_of(st.sampled_from(PIECES), st.sampled_from(NOISE), st.binary(max_size=20)), max_size=10),
    st.lists(st.integers(0, 2000), max_size=8),
)
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_requests_and_at_most_one_refusal(pieces, cuts):
    receiver = read(b"".join(pieces), cuts)
    assert len(receiver.refusals) <= 1
    for error in receiver.refusals:
        assert error.http_status in (400, 413, 431)
    for request in receiver.requests:
        assert len(request.body) <= LIMITS.body_bytes


def test_what_follows_a_refusal_is_never_read():
    receiver = read(b"nonsense\r\n\r\n" + PIECES[0], [])
    assert receiver.requests == []
    assert len(receiver.refusals) == 1
