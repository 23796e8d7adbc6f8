"""The table of subscriptions: what is replayed on every new connection, and what the parser dispatches by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bus.message import Message, check_subscription, parse_headers
from bus.parser import Headed, Plain

MessageHandler = Callable[[Message], None]
RawHandler = Callable[[str, str, bytes], None]


class Subscription:
    """One subject that is listened to, from `Bus.subscribe…` until `close`, over any number of connections."""

    __slots__ = ("_table", "denied", "queue", "sid", "subject")

    def __init__(self, table: Table, sid: str, subject: str, queue: str | None) -> None:
        self._table: Final = table
        self.sid: Final = sid
        self.subject: Final = subject
        self.queue: Final = queue
        self.denied: str | None = None
        """What the server said, if it does not let us listen here."""

    def command(self) -> bytes:
        """SUB."""
        middle = f" {self.queue}" if self.queue else ""
        return f"SUB {self.subject}{middle} {self.sid}\r\n".encode()

    def close(self) -> None:
        """No handler is called any more from now on, not even for messages that were read already."""
        self._table.remove(self)


class Table:
    """Owner of all subscriptions. `send` writes a command if there is a connection, else does nothing."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._last_sid = 0
        self._all: dict[str, Subscription] = {}
        self.plain: dict[str, Plain] = {}
        self.headed: dict[str, Headed] = {}

    def add(self, subject: str, queue: str | None, plain: Plain, headed: Headed) -> Subscription:
        """Raises `InvalidName` for a subject that the server would refuse."""
        check_subscription(subject, queue)
        self._last_sid += 1
        found = Subscription(self, str(self._last_sid), subject, queue)
        self._all[found.sid], self.plain[found.sid], self.headed[found.sid] = found, plain, headed
        self._send(found.command())
        return found

    def remove(self, subscription: Subscription) -> None:
        """Safe to call twice."""
        if self._all.pop(subscription.sid, None) is not None:
            del self.plain[subscription.sid], self.headed[subscription.sid]
            self._send(f"UNSUB {subscription.sid}\r\n".encode())

    def replay(self) -> list[bytes]:
        """All SUBs, for a new connection."""
        for subscription in self._all.values():
            subscription.denied = None
        return [subscription.command() for subscription in self._all.values()]

    def deny(self, subject: str, queue: str | None, text: str) -> bool:
        """Note the server's refusal. False if no subscription has the subject."""
        hit = [found for found in self._all.values() if (found.subject, found.queue) == (subject, queue)]
        for subscription in hit:
            subscription.denied = text
        return bool(hit)


def message_handlers(handler: MessageHandler) -> tuple[Plain, Headed]:
    """The two entries of a handler that wants `Message`."""

    def plain(subject: str, reply: str, payload: bytes) -> None:
        handler(Message(subject, payload, reply))

    def headed(subject: str, reply: str, payload: bytes, raw: bytes) -> None:
        handler(Message(subject, payload, reply, parse_headers(raw)))

    return plain, headed


def raw_handlers(handler: RawHandler) -> tuple[Plain, Headed]:
    """The two entries of a handler that wants nothing but bytes: headers are dropped unread."""

    def headed(subject: str, reply: str, payload: bytes, _raw: bytes) -> None:
        handler(subject, reply, payload)

    return handler, headed
