"""Nodes that cannot do a task which may be done anywhere: it goes on to the others, and comes back to none of these.

What may pass (no space now) is forgotten once no other node is left, so that those may be tried again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from schemas.task import TaskRecord, Unable

UNABLE_MOST: Final = 32
"""Nodes that are asked before the task is given up: a fleet of hundreds is not walked through."""
REASON_CHARS: Final = 160
_SAID_CHARS: Final = 900


def names(record: TaskRecord | None) -> Collection[str]:
    """Nodes that cannot."""
    return {each.node for each in record.unable} if record is not None else set()


def reason_of(record: TaskRecord | None, node: str) -> str | None:
    """Why this node cannot; None if it has not said so."""
    found = record.unable if record is not None and not record.ended else ()
    return next((each.reason for each in found if each.node == node), None)


def full(record: TaskRecord | None) -> bool:
    """So many cannot that, with one more, no other is asked."""
    return record is not None and len(record.unable) + 1 >= UNABLE_MOST


def with_one(record: TaskRecord, node: str, reason: str, *, passing: bool) -> TaskRecord:
    """The record that says so of one more."""
    others = tuple(each for each in record.unable if each.node != node)
    one = Unable(node=node, reason=reason[:REASON_CHARS], passing=passing)
    return record.model_copy(update={"unable": (*others, one)[-UNABLE_MOST:]})


def for_good(record: TaskRecord) -> TaskRecord:
    """The record without those that may be able later."""
    return record.model_copy(update={"unable": tuple(each for each in record.unable if not each.passing)})


def said(record: TaskRecord) -> str:
    """Each node's reason; nodes with the same one together."""
    by_reason: dict[str, list[str]] = {}
    for each in record.unable:
        by_reason.setdefault(each.reason, []).append(each.node)
    return _joined(by_reason)[:_SAID_CHARS]


def _joined(by_reason: Mapping[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(nodes)}: {reason}" for reason, nodes in by_reason.items())
