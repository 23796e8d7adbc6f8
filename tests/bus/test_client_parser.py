"""The parser against nats-py's own, over any split of the bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.protocol.parser import Parser as TheirParser

from bus.parser import CONTROL_LINE_LIMIT_BYTES, Parser, ProtocolBroken

SIDS = ("1", "7", "23")
LIMIT_BYTES = 4096


class Ours:
    """Our parser, and what it called."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.faults: list[BaseException] = []
        self.parser = Parser(
            {sid: self._plain(sid) for sid in SIDS},
            {sid: self._headed(sid) for sid in SIDS},
            control=lambda line: self.calls.append(("control", line.split(b" ")[0])),
            fault=lambda _subject, error: self.faults.append(error),
            limit_bytes=LIMIT_BYTES,
        )

    def _plain(self, sid: str) -> Any:
        return lambda subject, reply, payload: self.calls.append((int(sid), subject, reply, payload, None))

    def _headed(self, sid: str) -> Any:
        return lambda subject, reply, payload, raw: self.calls.append((int(sid), subject, reply, payload, raw))


class Theirs:
    """The client that nats-py's parser calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.calls.append((sid, subject.decode("utf-8", "replace"), reply.decode(), data, headers))

    async def _process_ping(self) -> None:
        self.calls.append(("control", b"PING"))

    async def _process_pong(self) -> None:
        self.calls.append(("control", b"PONG"))

    async def _process_err(self, _text: str) -> None:
        self.calls.append(("control", b"-ERR"))

    async def _process_info(self, _info: dict[str, Any]) -> None:
        self.calls.append(("control", b"INFO"))


TOKEN = st.text("abcdefgXYZ019_-=äé$", min_size=1, max_size=12)
SUBJECT = st.lists(TOKEN, min_size=1, max_size=4).map(".".join)
PAYLOAD = st.one_of(st.binary(max_size=60), st.sampled_from([b"", b"\r\n", b"MSG a 1 3\r\n", b"PING\r\n", b"x" * 1500]))


@st.composite
def message(draw: st.DrawFn) -> bytes:
    subject, sid, payload = draw(SUBJECT), draw(st.sampled_from(SIDS)), draw(PAYLOAD)
    reply = draw(st.one_of(st.just(""), SUBJECT))
    middle = f" {reply}" if reply else ""
    if draw(st.booleans()):
        return f"MSG {subject} {sid}{middle} {len(payload)}\r\n".encode() + payload + b"\r\n"
    head = b"NATS/1.0" + draw(st.sampled_from([b"", b" 503", b" 100 Idle Heartbeat"])) + b"\r\nA: b\r\n\r\n"
    line = f"HMSG {subject} {sid}{middle} {len(head)} {len(head) + len(payload)}\r\n".encode()
    return line + head + payload + b"\r\n"


CONTROL = st.sampled_from([b"PING\r\n", b"PONG\r\n", b"-ERR 'Some Error'\r\n", b'INFO {"a":1}\r\n'])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(message(), CONTROL), max_size=12).map(b"".join), st.data())
def test_any_split_of_the_bytes_gives_what_nats_py_gives(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    ours, theirs = Ours(), Theirs()
    parser = TheirParser(theirs)

    async def feed_theirs() -> None:
        for piece in pieces:
            await parser.parse(piece)

    asyncio.run(feed_theirs())
    for piece in pieces:
        ours.parser.feed(piece)
    assert ours.calls == theirs.calls
    assert not ours.faults


def test_one_byte_at_a_time_is_enough() -> None:
    ours = Ours()
    for byte in b"MSG a.b 7 r.1 5\r\nhello\r\nPING\r\n":
        ours.parser.feed(bytes([byte]))
    assert ours.calls == [(7, "a.b", "r.1", b"hello", None), ("control", b"PING")]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=6))
def test_rubbish_is_an_error_or_nothing_but_never_another_exception(pieces: list[bytes]) -> None:
    ours = Ours()
    try:
        for piece in pieces:
            ours.parser.feed(piece)
    except ProtocolBroken:
        return


@pytest.mark.parametrize(
    "line",
    [
        b"MSG a 7 99999999\r\n",
        b"MSG a 7\r\n",
        b"MSG a 7 x\r\n",
        b"MSG a 7 r 5 6 7\r\n",
        b"HMSG a 7 12 4\r\n1234\r\n",
        b"HMSG a 7 12\r\n",
        b"M" * (CONTROL_LINE_LIMIT_BYTES + 1),
    ],
)
def test_what_no_server_sends_breaks_the_connection_instead_of_filling_memory(line: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        Ours().parser.feed(line)


@pytest.mark.parametrize("error", [ValueError("mine"), KeyError("sid"), asyncio.CancelledError()])
def test_a_handler_that_raises_costs_only_its_own_message(error: BaseException) -> None:
    ours = Ours()

    def broken(_subject: str, _reply: str, _payload: bytes) -> None:
        raise error

    ours.parser.plain["1"] = broken
    ours.parser.feed(b"MSG a 1 2\r\nhi\r\nMSG b 7 2\r\nho\r\n")
    assert ours.faults == [error]
    assert ours.calls == [(7, "b", "", b"ho", None)]


def test_a_handler_removed_by_a_handler_is_not_called_for_what_was_read_already() -> None:
    ours = Ours()
    ours.parser.plain["1"] = lambda *_: ours.parser.plain.pop("7") and None
    ours.parser.feed(b"MSG a 1 2\r\nhi\r\nMSG b 7 2\r\nho\r\n")
    assert ours.calls == []


def test_a_subject_that_is_no_utf8_reaches_its_handler_and_breaks_nothing() -> None:
    ours = Ours()
    ours.parser.feed(b"MSG a.\xff\xfe 7 2\r\nhi\r\nPING\r\n")
    assert ours.calls == [(7, "a.��", "", b"hi", None), ("control", b"PING")]
