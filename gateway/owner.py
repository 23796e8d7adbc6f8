"""What a stream asks of whoever holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from schemas.errors import PunaError

if TYPE_CHECKING:
    from gateway.stream import Stream


class Owner(Protocol):
    """Plain calls, all of them."""

    tries: int
    answer_bytes: int
    keep_alive_s: float

    def reply(self, subject: str, word: bytes) -> bool:
        """Answer an `accept`. False: it could not be sent."""
        ...

    def withdraw(self, stream: Stream) -> None:
        """Take the present epoch back: from the node that has it or was offered it, or from the line."""
        ...

    def again(self, stream: Stream, why: PunaError) -> None:
        """The stream has a new epoch, for the last one failed: into the line with it."""
        ...

    def taken(self, stream: Stream) -> None:
        """The node that the stream was offered to has accepted it."""
        ...

    def fall_back(self, stream: Stream, why: str) -> None:
        """The node that the stream was offered to does not take it: into the line at once."""
        ...

    def engine_died(self, stream: Stream, why: str) -> None:
        """An engine ended while it worked on the stream; `stream.deaths` counts it already."""
        ...

    def credit(self, stream: Stream) -> None:
        """Tell the node at once what it need not keep any longer."""
        ...

    def ended(self, stream: Stream) -> None:
        """Nothing more will come of it."""
        ...

    def clock(self) -> float:
        """The loop's time in seconds."""
        ...
