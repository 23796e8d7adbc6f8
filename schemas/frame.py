"""One frame of a framed reply: an ASCII head line `<kind> <epoch> <seq>` and then the payload, as `wire.md` has it.

The epoch may bear its sender's mark, `<epoch>.<mark>`: the server can give one message of the line to two workers (one
was frozen), and the reader that bound itself to the mark of one `accept` is deaf to the other. So a worker may send
before its `accept` is answered.

The hot path joins and splits bytes and nothing else: the payload is never looked into, and `data` payloads are the
engine's own bytes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

ACCEPT: Final = b"accept"
OPEN: Final = b"open"
DATA: Final = b"data"
PING: Final = b"ping"
END: Final = b"end"
ERROR: Final = b"error"
KINDS: Final = frozenset((ACCEPT, OPEN, DATA, PING, END, ERROR))

GO: Final = b"go"
GONE: Final = b"gone"
"""The two answers to an `accept` frame."""

HEAD_LIMIT_BYTES: Final = 64
SILENCE_PING_S: Final = 1.0
"""A worker sends a `ping` when it has sent nothing for this long."""
LOST_AFTER_S: Final = 3.0
"""A reader that hears nothing for this long takes the worker for lost."""
PRESENCE_PROBE_S: Final = 0.25
"""How often a `data` frame carries a reply subject, so that the server tells if nobody listens any more."""


class Frame(NamedTuple):
    """A received frame. `seq` counts every frame of the epoch from 0; `mark` is the sender's, empty if it has none."""

    kind: bytes
    epoch: int
    seq: int
    payload: bytes
    mark: bytes = b""


class BadFrame(ValueError):
    """Bytes that are no frame."""


def marked_epoch(epoch: int, mark: bytes = b"") -> bytes:
    """What stands in a head for the epoch."""
    return b"%d.%b" % (epoch, mark) if mark else b"%d" % epoch


def encode_frame(kind: bytes, epoch: int | bytes, seq: int, payload: bytes = b"") -> bytes:
    """The bytes of one frame; `epoch` as a number, or as `marked_epoch` gave it."""
    return b"%b %b %d\n%b" % (kind, epoch if isinstance(epoch, bytes) else b"%d" % epoch, seq, payload)


def decode_frame(raw: bytes) -> Frame:
    """The frame in `raw`. Raises `BadFrame` if the head is not one."""
    end = raw.find(b"\n", 0, HEAD_LIMIT_BYTES)
    parts = raw[:end].split(b" ") if end > 0 else []
    if len(parts) != 3 or parts[0] not in KINDS:
        raise BadFrame("the head line is not '<kind> <epoch> <seq>'")
    number, _, mark = parts[1].partition(b".")
    try:
        return Frame(parts[0], int(number), int(parts[2]), raw[end + 1 :], mark)
    except ValueError as error:
        raise BadFrame("epoch and seq are not whole numbers") from error
