"""What follows from an `error` frame: a plain function of the failure and of how far the request is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.poison import DEATHS_LIMIT
from schemas.errors import EngineDied
from schemas.reply import Failure

Verdict = Literal["again", "line", "poisoned", "fail"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is. `deaths` counts the engine of this failure too, if it died."""

    offered: bool
    """It was offered to one node, and that has not accepted it."""
    begun: bool
    """The client has seen something of the answer."""
    tries_left: int
    deaths: int


def is_death(failure: Failure) -> bool:
    """Whether an engine died of the request."""
    return failure.code == EngineDied.code


def judge(failure: Failure, at: Progress) -> Verdict:
    """| failure                     | nothing sent, tries left | else       |
    |-----------------------------|--------------------------|------------|
    | the engine died, first time | `again`, as a suspect    | `fail`     |
    | the engine died, once more  | `poisoned`               | `poisoned` |
    | of an offer, not accepted   | `line`                   |            |
    | retryable                   | `again`                  | `fail`     |
    | any other                   | `fail`                   | `fail`     |
    """
    if is_death(failure) and at.deaths >= DEATHS_LIMIT:
        return "poisoned"
    if at.offered and not is_death(failure):
        return "line"
    return "again" if failure.retryable and not at.begun and at.tries_left > 0 else "fail"
