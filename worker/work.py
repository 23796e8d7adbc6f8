"""One request as the worker holds it, and the hold that it has on a message in the line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from schemas.request import RequestHead
from schemas.subjects import INTERACTIVE
from schemas.topology import QUEUE_ACK_WAIT_S

Origin = Literal["line", "group", "node", "http"]
"""How a request came: from the line, to the queue group, to this node by name, over the worker's own HTTP."""

WORKING_EVERY_S: Final = 0.5
"""How often the server hears that a job is being worked on, well inside the line's `ack_wait`."""


class Job(Protocol):
    """What the worker needs of a message from the line. All calls are plain and safe while disconnected."""

    @property
    def delivered(self) -> int:
        """Times that the server gave the message to somebody, this one included."""
        ...

    @property
    def valid(self) -> Callable[[], bool]:
        """Whether what is said about it still reaches the server that gave it."""
        ...

    def ack(self) -> object: ...
    def nak(self, delay_s: float = 0) -> object: ...
    def working(self) -> object: ...
    def term(self, reason: str) -> object: ...


class Claim:
    """Our hold on a job: kept alive until it is settled one way, once. Without a job all calls do nothing."""

    __slots__ = ("_job", "_kept_at", "_next_working_at")

    def __init__(self, job: Job | None, now: float) -> None:
        self._job = job
        self._kept_at = now
        self._next_working_at = now + WORKING_EVERY_S

    @property
    def held(self) -> bool:
        """Whether the message is ours and not settled yet."""
        return self._job is not None

    @property
    def delivered(self) -> int:
        """Times that the server gave the message to somebody; 1 without a job."""
        return self._job.delivered if self._job else 1

    def keep(self, now: float) -> None:
        """Tell the server that we work on it, when it is time to."""
        if self._job is not None and now >= self._next_working_at:
            self._next_working_at = now + WORKING_EVERY_S
            if self._job.working() is not False:
                self._kept_at = now

    def lost(self, now: float) -> bool:
        """Whether the message is somebody else's, or will be: the server has not heard of us for too long, or it is
        not the one any more that gave it to us."""
        return self._job is not None and (now - self._kept_at > QUEUE_ACK_WAIT_S or not self._job.valid())

    def forget(self) -> None:
        """It is not ours any more: say nothing about it."""
        self._release()

    def settle(self) -> None:
        """The request is answered, or its requester knows that it is ours: nobody else may get it."""
        if (job := self._release()) is not None:
            job.ack()

    def give_back(self, delay_s: float = 0.0) -> None:
        """Somebody else may have it, after `delay_s`."""
        if (job := self._release()) is not None:
            job.nak(delay_s)

    def drop(self, reason: str) -> None:
        """Nobody shall have it again."""
        if (job := self._release()) is not None:
            job.term(reason)

    def _release(self) -> Job | None:
        job, self._job = self._job, None
        return job


@dataclass(frozen=True, slots=True)
class Work:
    """A request that arrived. Times are this process's monotonic seconds."""

    head: RequestHead
    model: str
    body: bytes
    origin: Origin
    received_at: float
    claim: Claim
    stream: bool | None = None
    """Whether the body asks for a stream; `None` where nobody looked (a gateway did)."""
    waited_s: float = 0.0
    """How long the request stood in the line, by the server's clock: for people, never compared."""

    lane: str = INTERACTIVE
    """The lane of the line that it came from, or would go to."""

    @property
    def deadline_at(self) -> float:
        """When nobody waits for the answer any more."""
        return self.received_at + self.head.deadline_s

    @property
    def key(self) -> tuple[str, int]:
        """Request id and epoch: one attempt at one request."""
        return self.head.request_id, self.head.epoch
