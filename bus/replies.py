"""Requests and their answers over one wildcard subscription: a dict, nothing per request on the server.

Who asks waits on a future, or is called back: the same table serves both, and fails both when the session goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bus.errors import NoResponders
from bus.message import Message, parse_headers
from bus.parser import Headed, Plain
from schemas.errors import PunaError

_NO_RESPONDERS: Final = "503"


class Callbacks:
    """What a future would be told, as plain calls in the socket's own callback. Exactly one of them, once, unless the
    requester forgets the request before."""

    __slots__ = ("set_exception", "set_result")

    def __init__(self, on_answer: Callable[[Message], None], on_error: Callable[[PunaError], None]) -> None:
        self.set_result: Final = on_answer
        self.set_exception: Final = on_error

    def done(self) -> bool:
        """Never while it is in the table: it leaves with its one call."""
        return False


@dataclass(slots=True)
class _Waiting:
    subject: str
    future: asyncio.Future[Message] | Callbacks


class Replies:
    """Owner of the requests that wait for an answer."""

    def __init__(self, prefix: str) -> None:
        self._prefix: Final = prefix
        self._skip: Final = len(prefix)
        self._last = 0
        self._waiting: dict[str, _Waiting] = {}

    @property
    def wildcard(self) -> str:
        """What to subscribe to."""
        return f"{self._prefix}*"

    def expect(self, subject: str) -> tuple[str, asyncio.Future[Message]]:
        """The reply subject of a new request to `subject`, and where its answer will be."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return self._add(subject, future), future

    def call(self, subject: str, callbacks: Callbacks) -> str:
        """The reply subject of a new request to `subject` whose end is told by a call."""
        return self._add(subject, callbacks)

    def _add(self, subject: str, future: asyncio.Future[Message] | Callbacks) -> str:
        self._last += 1
        token = str(self._last)
        self._waiting[token] = _Waiting(subject, future)
        return self._prefix + token

    def forget(self, reply: str) -> None:
        """The requester waits no more."""
        self._waiting.pop(reply[self._skip :], None)

    def plain(self, subject: str, reply: str, payload: bytes) -> None:
        """Handler of answers without headers."""
        self._settle(subject, Message(subject, payload, reply))

    def headed(self, subject: str, reply: str, payload: bytes, raw: bytes) -> None:
        """Handler of answers with headers, the server's 503 among them."""
        message = Message(subject, payload, reply, parse_headers(raw))
        if message.status == _NO_RESPONDERS and not payload:
            self._fail(subject[self._skip :])
        else:
            self._settle(subject, message)

    def _settle(self, subject: str, message: Message) -> None:
        waiting = self._waiting.pop(subject[self._skip :], None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(message)

    def _fail(self, token: str) -> None:
        waiting = self._waiting.pop(token, None)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_exception(NoResponders(f"nobody listens on {waiting.subject}"))

    def fail(self, error: PunaError, *, subject: str | None = None) -> None:
        """Fail the requests to `subject`, or all of them."""
        for token, waiting in list(self._waiting.items()):
            if subject is None or waiting.subject == subject:
                del self._waiting[token]
                if not waiting.future.done():
                    waiting.future.set_exception(error)


class GoneWatch:
    """Reply subjects nobody is meant to answer: the server's 503 tells that no one listened to what carried them."""

    def __init__(self, prefix: str, handler: Callable[[str], None]) -> None:
        self._prefix: Final = prefix
        self._handler: Final = handler

    @property
    def wildcard(self) -> str:
        """What to subscribe to."""
        return f"{self._prefix}*"

    def reply(self, token: str) -> str:
        """The reply subject for a message of `token`; the token must be a legal subject token."""
        return self._prefix + token

    def handlers(self) -> tuple[Plain, Headed]:
        """Entries for the table of subscriptions."""
        return self._answered, self._headed

    def _answered(self, subject: str, reply: str, payload: bytes) -> None:
        """An answer from somebody: whoever answers is there."""

    def _headed(self, subject: str, _reply: str, payload: bytes, raw: bytes) -> None:
        if not payload and raw.startswith(b"NATS/1.0 503"):
            self._handler(subject[len(self._prefix) :])
