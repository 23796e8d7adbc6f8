"""Which pulls stand at the server, each on its own inbox, and which of them have gone silent. Plain bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from bus.connection import Bus
from bus.listeners import new_inbox
from bus.message import Message
from bus.subscription import Subscription

PULL_EXPIRES_S: Final = 30.0
PULL_HEARTBEAT_S: Final = 2.0
MISSED_AFTER_S: Final = 2.5 * PULL_HEARTBEAT_S


@dataclass(eq=False, slots=True)
class Pull:
    """One inbox and the pull that is outstanding on it, if any. Times are the event loop's, in seconds."""

    inbox: str
    subscription: Subscription | None = None
    priority: int = 0
    round: int = 0
    """The time that the consumer was found standing, counted, in which this was asked."""
    asked_at: float = 0.0
    heard_at: float = 0.0
    missed: bool = False

    def close(self) -> None:
        """The server drops what is asked on an inbox that nobody listens to."""
        if self.subscription is not None:
            self.subscription.close()
            self.subscription = None


class Outstanding:
    """Owner of the inboxes of one part. `received` is called with each message of each."""

    def __init__(self, bus: Bus, received: Callable[[Pull, Message], None]) -> None:
        self._bus = bus
        self._received = received
        self._asked: set[Pull] = set()
        self._idle: list[Pull] = []

    def __len__(self) -> int:
        return len(self._asked)

    def __contains__(self, pull: Pull) -> bool:
        return pull in self._asked

    def count(self, priority: int) -> int:
        """Pulls of this priority that are thought alive."""
        return sum(1 for pull in self._asked if pull.priority == priority and not pull.missed)

    def idle(self) -> Pull:
        """One on which nothing is asked."""
        if self._idle:
            return self._idle.pop()
        pull = Pull(new_inbox(self._bus))
        pull.subscription = self._bus.subscribe(pull.inbox, partial(self._received, pull))
        return pull

    def asked(self, pull: Pull, *, priority: int, round_: int, now: float) -> None:
        """It stands at the server from now on."""
        pull.priority, pull.round, pull.missed = priority, round_, False
        pull.asked_at = pull.heard_at = now
        self._asked.add(pull)

    def ended(self, pull: Pull) -> None:
        """Its one answer came, or it was never sent. Its inbox is free again."""
        self._asked.discard(pull)
        if pull.subscription is not None and pull not in self._idle:
            self._idle.append(pull)

    def forget(self) -> None:
        """The session is gone, and all that was asked in it."""
        for pull in (*self._asked, *self._idle):
            pull.close()
        self._asked.clear()
        self._idle.clear()

    def silent(self, now: float, stood_still_s: float) -> Iterator[Pull]:
        """Pulls whose heartbeats are missing since now; those that must have expired are dropped.

        `stood_still_s`: for so long this very process did nothing, which is nobody's silence.
        """
        for pull in list(self._asked):
            pull.heard_at += stood_still_s
            if now > pull.asked_at + PULL_EXPIRES_S + MISSED_AFTER_S:
                self._asked.discard(pull)
                pull.close()
            elif not pull.missed and now > pull.heard_at + MISSED_AFTER_S:
                pull.missed = True
                yield pull
