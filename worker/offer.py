"""The `accept` frame as a question: it is asked, answered, or nobody answers. Plain calls; the time is handed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Final

from bus.connection import Bus, Message
from schemas.errors import PunaError
from schemas.reply import Accept, Open

ACCEPT_WAIT_S: Final = 3.0
"""As long as a reader waits for a silent worker: it may have taken frames that came behind the `accept`."""

OnWord = Callable[[bytes], None]
OnError = Callable[[PunaError], None]


@lru_cache(maxsize=256)
def accept_of(node: str, engine: str = "", device: str = "") -> bytes:
    """The payload of an `accept` frame, the same for all requests of an engine."""
    return Accept(node=node, engine=engine, device=device).encode()


@lru_cache(maxsize=256)
def open_of(status: int, content_type: str) -> bytes:
    """The payload of an `open` frame."""
    return Open(status=status, content_type=content_type).encode()


class Offer:
    """One requester's `accept`, as often as it has to be asked."""

    __slots__ = ("_asked_at", "_bus", "_subject", "_token")

    def __init__(self, bus: Bus, subject: str) -> None:
        self._bus = bus
        self._subject = subject
        self._token = ""
        self._asked_at = 0.0

    @property
    def open(self) -> bool:
        """It was asked and has no answer yet."""
        return bool(self._token)

    def ask(self, accept: bytes, now: float, *, on_word: OnWord, on_error: OnError) -> None:
        """Send it, with the first frames if those come at once. `on_word` hears the answer, `on_error` that the
        question was lost: nobody listens, or the connection went. Raises what `Bus.publish` raises."""
        self._asked_at = now
        # kept by the bus until one of them is called, and not by us: who asks owns us, and shall go without the
        # garbage collector
        answered, failed = partial(self._answered, on_word), partial(self._failed, on_error)
        self._token = self._bus.ask(self._subject, accept, on_answer=answered, on_error=failed, lazy=True)

    def unanswered(self, now: float) -> bool:
        """Whether the answer is overdue; if so it is waited for no more."""
        if not self._token or now - self._asked_at < ACCEPT_WAIT_S:
            return False
        self.withdraw()
        return True

    def withdraw(self) -> None:
        """An answer changes nothing any more. Safe to call twice."""
        token, self._token = self._token, ""
        if token:
            self._bus.forget(token)

    def _answered(self, on_word: OnWord, message: Message) -> None:
        self._token = ""
        on_word(message.payload)

    def _failed(self, on_error: OnError, error: PunaError) -> None:
        self._token = ""
        on_error(error)
