"""What every way of answering has in common: HTTP, framed NATS, broker-native NATS.

A `Reply` takes the answer of one engine; a `Flow` is what it may ask of the work behind it. All calls are plain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from schemas.errors import PunaError
from schemas.reply import End, Failure


@dataclass(frozen=True, slots=True)
class Summary:
    """What is told at the end of a whole answer. `usage` and `timings` are the engine's own objects."""

    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    waited_s: float = 0.0
    first_data_s: float | None = None
    total_s: float = 0.0


class Flow(Protocol):
    """The work behind a reply."""

    def pause(self) -> None:
        """Read no more from the engine for now."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...

    def abandon(self, error: PunaError) -> None:
        """End the engine's work at once; `error` is told to whoever still listens."""
        ...


class Reply(Protocol):
    """One answer on its way out. `end` or `error` comes last, once."""

    def begin(self, flow: Flow) -> None:
        """The engine was asked; from here on `flow` may be called."""
        ...

    def open(self, status: int, content_type: str) -> None:
        """The head of the engine's answer."""
        ...

    def data(self, data: bytes) -> None:
        """Some of the body: of a stream, whole events."""
        ...

    def end(self, summary: Summary) -> None:
        """The answer is whole."""
        ...

    def error(self, error: PunaError) -> None:
        """There will be no whole answer."""
        ...

    def tick(self, now: float) -> bool:
        """Some time has passed. False: nothing is left to do, forget this reply."""
        ...


class BusReply(Reply, Protocol):
    """A reply that travels over NATS and outlives a broken connection."""

    @property
    def token(self) -> str:
        """The last token of the subject that it goes to."""
        ...

    @property
    def away(self) -> bool:
        """A session began after one was lost, and it is not known yet whether the reader is back, too."""
        ...

    def lost(self) -> None:
        """The connection went."""
        ...

    def knock(self) -> None:
        """In a new session: send something that the server answers for if nobody listens."""
        ...

    def back(self, *, give_up: bool) -> None:
        """The server has worked off the knock. With `give_up`, the reader has had its time to come back."""
        ...

    def gone(self) -> None:
        """Nobody listened to what was sent."""
        ...

    def credit(self, epoch: int, next_seq: int) -> None:
        """The reader has all frames before `next_seq`."""
        ...


class Finish(End):
    """`end` of this worker: what every reader knows, and durations for those who want them. Milliseconds."""

    waited_ms: float | None = None
    first_data_ms: float | None = None
    total_ms: float | None = None


class Fault(Failure):
    """`error` of this worker: with the number of data frames that went before it."""

    data_frames: int = 0


def finish_of(summary: Summary, data_frames: int) -> Finish:
    """The payload of the `end` frame."""
    first_s = summary.first_data_s
    return Finish(
        data_frames=data_frames,
        usage=summary.usage,
        timings=summary.timings,
        waited_ms=round(summary.waited_s * 1000, 1),
        first_data_ms=None if first_s is None else round(first_s * 1000, 1),
        total_ms=round(summary.total_s * 1000, 1),
    )


def fault_of(error: PunaError, data_frames: int) -> Fault:
    """The payload of the `error` frame."""
    inner = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return Fault(
        code=error.code,
        status=error.http_status,
        retryable=error.retryable,
        message=error.message,
        retry_after_s=error.retry_after_s,
        body={"error": inner},
        data_frames=data_frames,
    )
