"""From bytes to calls: the NATS protocol as the server speaks it, parsed with `find` and dispatched in place.

Rules: a handler is called before the next message is looked at; a handler that raises costs only its own message;
bytes may be split anywhere; what is kept between two reads is at most one message (`limit_bytes`) or control line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

Plain = Callable[[str, str, bytes], None]
"""(subject, reply, payload) of a message without headers."""
Headed = Callable[[str, str, bytes, bytes], None]
"""(subject, reply, payload, raw headers) of a message with headers."""

CONTROL_LINE_LIMIT_BYTES: Final = 1 << 18
"""INFO of a big cluster is the longest line there is; everything else has at most 4 KiB."""

_CRLF: Final = b"\r\n"
_M: Final = ord("M")
_H: Final = ord("H")


class ProtocolBroken(Exception):
    """The server sent what no NATS server sends. The connection cannot be used any more."""


class Parser:
    """Feed it what the socket gives; it calls the handler of each message, by subscription id.

    `plain` and `headed` belong to the caller, who may change them at any time, also from within a handler.
    """

    __slots__ = ("_chunks", "_control", "_fault", "_have_bytes", "_need_bytes", "headed", "limit_bytes", "plain")

    def __init__(
        self,
        plain: dict[str, Plain],
        headed: dict[str, Headed],
        *,
        control: Callable[[bytes], None],
        fault: Callable[[str, BaseException], None],
        limit_bytes: int,
    ) -> None:
        self.plain = plain
        self.headed = headed
        self.limit_bytes = limit_bytes
        self._control = control
        self._fault = fault
        self._chunks: list[bytes] = []
        self._have_bytes = 0
        self._need_bytes = 0

    def feed(self, data: bytes) -> None:
        """Dispatch all that is whole by now. Raises `ProtocolBroken`."""
        if self._chunks:
            self._chunks.append(data)
            self._have_bytes += len(data)
            if self._have_bytes < self._need_bytes:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        used, need_bytes = self._run(data)
        if used < len(data):
            rest = data[used:] if used else data
            self._chunks.append(rest)
            self._have_bytes = len(rest)
            self._need_bytes = need_bytes

    def _run(self, data: bytes) -> tuple[int, int]:
        """Returns how many bytes are done with, and how many the next message has in all.

        One flat loop: at some hundred thousand messages a second a call for each would be felt.
        """
        plain, headed, find = self.plain, self.headed, data.find
        position, end = 0, len(data)
        while position < end:
            eol = find(_CRLF, position)
            if eol < 0:
                return position, _more_of_line(end - position)
            kind = data[position]
            start = eol + 2
            if kind == _M:
                parts = str(data[position + 4 : eol], "utf-8", "replace").split(" ")
                try:
                    if len(parts) == 3:
                        subject, sid, size = parts
                        reply = ""
                    else:
                        subject, sid, reply, size = parts
                    stop = start + int(size)
                except ValueError as error:
                    raise ProtocolBroken("malformed MSG") from error
                if stop + 2 > end:
                    return position, self._more_of_message(stop + 2 - position)
                position = stop + 2
                if (handler := plain.get(sid)) is not None:
                    try:
                        handler(subject, reply, data[start:stop])
                    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (the owner logs it)
                        self._fault(subject, error)
            elif kind == _H:
                subject, sid, reply, head, stop = _headed_line(data[position + 5 : eol], start)
                if stop + 2 > end:
                    return position, self._more_of_message(stop + 2 - position)
                position = stop + 2
                if (with_headers := headed.get(sid)) is not None:
                    try:
                        with_headers(subject, reply, data[head:stop], data[start:head])
                    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 (the owner logs it)
                        self._fault(subject, error)
            else:
                self._control(data[position:eol])
                position = start
        return end, 0

    def _more_of_message(self, need_bytes: int) -> int:
        if need_bytes > self.limit_bytes:
            raise ProtocolBroken(f"a message of {need_bytes} bytes; at most {self.limit_bytes} were agreed")
        return need_bytes


def _headed_line(line: bytes, start: int) -> tuple[str, str, str, int, int]:
    """Subject, subscription id, reply, and where headers and payload end."""
    parts = str(line, "utf-8", "replace").split(" ")
    if len(parts) == 4:
        parts.insert(2, "")
    try:
        subject, sid, reply, head, total = parts
        headers_end, stop = start + int(head), start + int(total)
    except ValueError as error:
        raise ProtocolBroken("malformed HMSG") from error
    if not start <= headers_end <= stop:
        raise ProtocolBroken("HMSG whose headers are longer than the message")
    return subject, sid, reply, headers_end, stop


def _more_of_line(have_bytes: int) -> int:
    if have_bytes > CONTROL_LINE_LIMIT_BYTES:
        raise ProtocolBroken(f"a control line of over {CONTROL_LINE_LIMIT_BYTES} bytes")
    return have_bytes + 1
