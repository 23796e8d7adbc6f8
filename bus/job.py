"""One message of a work queue in somebody's hands, and the five things that can be said about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from bus.message import Message
from schemas.errors import BusUnavailable

ACK_PREFIX: Final = "$JS.ACK."
_SHORT_TOKENS: Final = 9
_LONG_TOKENS: Final = 11
_NS: Final = 1_000_000_000

Acknowledge = Callable[[str, bytes], None]


class Delivery(NamedTuple):
    """What JetStream writes into the reply subject of a message that it delivers."""

    stream: str
    consumer: str
    delivered: int
    stream_sequence: int
    consumer_sequence: int
    published_at: float
    """Unix time in seconds, by the server's clock."""
    pending: int


def parse_delivery(reply: str) -> Delivery | None:
    """The delivery behind a reply subject, in its short form or the long one (with domain and account hash).

    None if it is no such subject: a status message of the server, or a message that came another way.
    """
    if not reply.startswith(ACK_PREFIX):
        return None
    tokens = reply.split(".")
    if len(tokens) != _SHORT_TOKENS:
        if len(tokens) < _LONG_TOKENS:
            return None
        tokens = tokens[2:]
    stream, consumer, *numbers = tokens[2:9]
    try:
        delivered, stream_sequence, consumer_sequence, published_ns, pending = map(int, numbers)
    except ValueError:
        return None
    return Delivery(stream, consumer, delivered, stream_sequence, consumer_sequence, published_ns / _NS, pending)


@dataclass(slots=True)
class Job:
    """A message that is ours until `ack_wait` after the last sign of life.

    `ack`, `nak`, `working` and `term` are plain calls. They return False when nothing was sent: the connection is
    down, or the consumer was lost meanwhile with the server's memory (its sequence numbers begin anew, and a late
    acknowledgement would take away somebody else's message). The message then comes again, or is gone for good.
    """

    subject: str
    payload: bytes = field(repr=False)
    headers: Mapping[str, str]
    stream_sequence: int
    delivered: int
    """Times this message has been handed out, this one included."""
    pending: int
    published_at: float
    """Unix time in seconds, by the server's clock."""
    reply: str
    valid: Callable[[], bool] = field(repr=False)
    acknowledge: Acknowledge = field(repr=False)

    def ack(self) -> bool:
        """Done: the message leaves the queue."""
        return self._say(b"+ACK")

    def nak(self, delay_s: float = 0) -> bool:
        """Not by us: to the next one who asks, after `delay_s`."""
        return self._say(b'-NAK {"delay": %d}' % int(delay_s * _NS) if delay_s > 0 else b"-NAK")

    def working(self) -> bool:
        """Still at it: `ack_wait` starts anew."""
        return self._say(b"+WPI")

    def term(self, reason: str) -> bool:
        """Never again: the message is dropped and the server's advisory carries the reason."""
        return self._say(f"+TERM {reason}".encode())

    def _say(self, word: bytes) -> bool:
        if not self.valid():
            return False
        try:
            self.acknowledge(self.reply, word)
        except BusUnavailable:
            return False
        return True


def job_from(message: Message, delivery: Delivery, *, valid: Callable[[], bool], acknowledge: Acknowledge) -> Job:
    """The job that a delivered message is."""
    return Job(
        subject=message.subject,
        payload=message.payload,
        headers=message.headers or {},
        stream_sequence=delivery.stream_sequence,
        delivered=delivery.delivered,
        pending=delivery.pending,
        published_at=delivery.published_at,
        reply=message.reply,
        valid=valid,
        acknowledge=acknowledge,
    )
