"""The load client counts right, whatever shape the bytes come in, and sees every kind of fault."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from bench.overhead.load import Seen

Drive = Callable[..., Seen]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(number: int) -> bytes:
    marks = f'"content":" w{number:06x}"}}}}],"system_fingerprint":"b11434-{number:016x}"'
    return b'data: {"choices":[{"delta":{' + marks.encode() + b"}\n\n"


def chunk(data: bytes) -> bytes:
    return b"%X\r\n%s\r\n" % (len(data), data)


def answer(*parts: bytes) -> bytes:
    return HEAD + b"".join(map(chunk, parts)) + b"0\r\n\r\n"


@contextmanager
def serving(pieces: Sequence[bytes], *, connections: int = 1) -> Iterator[int]:
    """Answers the first request of each connection with these pieces, one write each, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_serve, args=(server, pieces, connections))
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def _serve(server: socket.socket, pieces: Sequence[bytes], connections: int) -> None:
    for _ in range(connections):
        peer, _ = server.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.recv(65536)
            for piece in pieces:
                peer.sendall(piece)


WHOLE = answer(*map(event, range(5)), DONE)


@pytest.mark.parametrize("size", [1, 2, 7, 100, len(WHOLE)])
def test_events_are_counted_however_the_bytes_are_cut(drive: Drive, size: int) -> None:
    with serving([WHOLE[at : at + size] for at in range(0, len(WHOLE), size)]) as port:
        seen = drive(port)
    assert (seen.chunks, seen.answers, seen.first_ms.count, seen.gap_ms.count) == (5, 1, 1, 4)
    assert seen.delay_ms.count == 5
    assert seen.faults == 0


def test_events_over_several_chunks_and_several_in_one_are_counted(drive: Drive) -> None:
    joined = b"".join(map(event, range(5))) + DONE
    with serving([answer(joined[:100], joined[100:300], joined[300:])]) as port:
        seen = drive(port)
    assert (seen.chunks, seen.faults) == (5, 0)


def test_comments_are_no_chunks(drive: Drive) -> None:
    with serving([answer(b": keep-alive\n\n", event(0), b": keep-alive\n\n", DONE)]) as port:
        assert drive(port).chunks == 1


@pytest.mark.parametrize("numbers", [(0, 2), (0, 0), (0, 2, 1)])
def test_lost_doubled_and_swapped_chunks_are_seen(drive: Drive, numbers: tuple[int, ...]) -> None:
    with serving([answer(*map(event, numbers), DONE)]) as port:
        assert drive(port).disordered > 0


def test_a_stream_without_done_is_seen(drive: Drive) -> None:
    with serving([answer(event(0))]) as port:
        assert drive(port).missing_done == 1


def test_an_error_event_is_seen(drive: Drive) -> None:
    with serving([answer(event(0), b'data: {"error":{"message":"gone"}}\n\n')]) as port:
        seen = drive(port)
    assert seen.errors["event"] == 1
    assert seen.missing_done == 1


def test_a_stream_that_is_cut_is_seen(drive: Drive) -> None:
    with serving([WHOLE[:-30]]) as port:
        seen = drive(port)
    assert seen.errors["cut"] == 1
    assert seen.answers == 0


def test_a_refusal_is_seen_with_its_status(drive: Drive) -> None:
    with serving([b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}"]) as port:
        seen = drive(port)
    assert (seen.errors["status"], seen.bad_status, seen.chunks) == (1, 429, 0)


def test_a_chunk_size_that_is_none_is_seen(drive: Drive) -> None:
    with serving([HEAD + b"zz\r\nhello\r\n"]) as port:
        assert drive(port).errors["parse"] == 1


def test_a_closed_port_is_seen(drive: Drive) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert drive(port).errors["connect"] == 1


def test_a_kept_connection_that_the_server_closed_is_no_error(drive: Drive) -> None:
    with serving([WHOLE], connections=3) as port:
        seen = drive(port, requests=3)
    assert (seen.answers, seen.faults) == (3, 0)
