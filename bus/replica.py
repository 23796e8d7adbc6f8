"""What one ordered consumer of a bucket has told so far. Plain: messages in, entries and doubts out.

A doubt is the reason, in words, why the entries cannot be trusted any more; None while all is well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bus.entry import Entry, is_removal
from bus.job import Delivery
from bus.message import Message

_LAST_CONSUMER: Final = "Nats-Last-Consumer"
_LAST_STREAM: Final = "Nats-Last-Stream"


class Replica:
    """One consumer's life: first the newest message of each key, then every change."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.entries: dict[str, Entry] = {}
        self.whole = False
        """All that was in the bucket when the consumer was made has come."""
        self.sequence = 0
        """Messages that came."""
        self.position = 0
        """Sequence in the stream up to which nothing is missing."""
        self._behind: int | None = None

    def take(self, message: Message, delivery: Delivery) -> str | None:
        """One message of the bucket. Returns a doubt if one before it is missing; then it changes nothing."""
        if delivery.consumer_sequence != self.sequence + 1:
            return f"message {delivery.consumer_sequence} came after {self.sequence}"
        self.sequence, self.position = delivery.consumer_sequence, delivery.stream_sequence
        key = message.subject.removeprefix(self._prefix)
        if is_removal(message.headers):
            self.entries.pop(key, None)
        else:
            self.entries[key] = Entry(key, message.payload, delivery.stream_sequence, delivery.published_at)
        self.whole = self.whole or delivery.pending == 0
        return None

    def heartbeat(self, headers: Mapping[str, str]) -> str | None:
        """The consumer has nothing to send, and says how much it has sent. Returns a doubt if more than came."""
        sent = headers.get(_LAST_CONSUMER)
        if sent is None:
            return None
        if int(sent) != self.sequence:
            return f"the server has sent {sent} messages, {self.sequence} came"
        self.position = int(headers.get(_LAST_STREAM, self.position))
        self.whole = True  # also when the last ones that were pending have expired on the way
        behind, self._behind = self._behind, None
        return None if behind is None or self.position >= behind else f"at {self.position}, the bucket at {behind}"

    def compare(self, state: Mapping[str, Any]) -> str | None:
        """Against the stream's state: a purge or a limit removes keys without a message.

        That the stream is ahead may be what is on its way just now, so the next heartbeat decides about that.
        """
        oldest = min((entry.revision for entry in self.entries.values()), default=None)
        if oldest is not None and oldest < int(state["first_seq"]):
            return "the bucket was purged"
        if len(self.entries) > int(state.get("num_subjects", 0)):
            return "the bucket holds fewer keys than were followed"
        if self.position < int(state["last_seq"]):
            self._behind = int(state["last_seq"])
        return None
