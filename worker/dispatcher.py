"""What to do with a request, decided over data: no effects, no clock, no loop.

| came by        | free slot | none free                                         | unknown model  |
|----------------|-----------|---------------------------------------------------|----------------|
| line           | serve     | hold it if an engine can be started for it, else  | give back      |
|                |           | give back                                         |                |
| queue group    | serve     | into the line                                     | into the line  |
| node, native   | serve     | into the line                                     | refuse         |
| node, framed   | serve     | refuse, retryable: the gateway knows other ways   | refuse         |
| own HTTP       | serve     | wait here, up to a bound                          | refuse         |

A suspect, which has killed an engine before, has a free slot only in an engine without another suspect.

A request whose time is over is refused. One that the line brings again while it runs here is dropped; an older attempt
at it is ended first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from schemas.errors import DeadlineExceeded, InvalidRequest, LineFull, ModelNotFound, PunaError, Unavailable
from schemas.subjects import H_REQUEST
from worker.work import Origin

WAITING_LIMIT_REQUESTS: Final = 64
"""Requests of the worker's own HTTP that may wait for a slot of one model."""
GIVE_BACK_DELAY_S: Final = 0.2
"""A job of an engine that is not ready, or has another suspect in it, comes back after this: nobody is served by
handing it round faster."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request and what matters of this node for it."""

    origin: Origin
    node: str
    model: str
    framed: bool
    serves: bool
    free: int
    ready: bool
    draining: bool
    time_left_s: float
    waiting: int = 0
    epoch: int = 1
    running_epoch: int | None = None
    """The attempt at this same request that runs here, if one does."""
    here: bool = True
    """Whether there is an engine of the model, in whatever state."""
    may_hold: bool = False
    """Whether an engine would be started for it."""
    may_wait: bool = True
    """Whether the limit of the model's devices lets one more wait."""
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """`verb`, and with `refuse` the error, with `give_back` the delay, and whether an older attempt must end first."""

    verb: Literal["serve", "line", "wait", "hold", "give_back", "refuse", "drop"]
    error: PunaError | None = None
    delay_s: float = 0.0
    ends_older: bool = False


def decide(ask: Question) -> Decision:
    """What to do with the request. See the table above."""
    older = ask.running_epoch
    if older is not None and older >= ask.epoch:
        again = InvalidRequest("a request with this id is running here already", param=H_REQUEST)
        return Decision("drop" if ask.origin == "line" else "refuse", again)
    if ask.time_left_s <= 0:
        return Decision("refuse", DeadlineExceeded("the request's deadline passed before it could start"))
    if not ask.serves and ask.origin in ("node", "http"):
        return Decision("refuse", ModelNotFound(f"node {ask.node} does not serve model {ask.model}", param="model"))
    freed = 1 if older is not None else 0
    if ask.serves and ask.ready and not ask.draining and ask.free + freed > 0:
        return Decision("serve", ends_older=older is not None)
    return _without_slot(ask)


def _without_slot(ask: Question) -> Decision:
    if ask.origin == "line":
        if ask.may_hold and not ask.draining:
            return Decision("hold")
        return Decision("give_back", delay_s=_rest_s(ask))
    if ask.origin == "http":
        return _at_the_door(ask)
    if ask.origin == "node" and ask.framed:
        return Decision("refuse", Unavailable(f"node {ask.node} {_reason(ask)}"))
    return Decision("line")


def _at_the_door(ask: Question) -> Decision:
    if ask.draining:
        return Decision("refuse", Unavailable(f"node {ask.node} {_reason(ask)}", retry_after_s=5.0))
    if ask.waiting >= WAITING_LIMIT_REQUESTS or not ask.may_wait:
        return Decision("refuse", LineFull(f"{ask.waiting} requests wait for {ask.model} already", retry_after_s=2.0))
    return Decision("wait")


def _rest_s(ask: Question) -> float:
    """A model that is not here was asked for by a pull that is not wanted any more: nobody shall wait for that."""
    if ask.draining or not ask.here:
        return 0.0
    return GIVE_BACK_DELAY_S if ask.suspect or not ask.ready else 0.0


def _reason(ask: Question) -> str:
    if ask.draining:
        return "is draining"
    return f"has no free slot for {ask.model}" if ask.ready else f"has no ready engine for {ask.model}"
