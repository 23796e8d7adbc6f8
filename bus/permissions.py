"""Whether NATS lets this user do what the process is going to do, asked at start instead of found out by time-outs.

The server tells a user's own permissions on `$SYS.REQ.USER.INFO`; nothing is published to find them out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import orjson

from bus.connection import Bus
from bus.errors import BusDenied, NoResponders
from schemas.errors import BusUnavailable, DeadlineExceeded

log = logging.getLogger(__name__)

USER_INFO: Final = "$SYS.REQ.USER.INFO"
_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Denied:
    """One thing that the process needs and may not do."""

    action: Literal["publish", "subscribe"]
    subject: str
    user: str

    def __str__(self) -> str:
        return f"NATS user {self.user!r} may not {self.action} to {self.subject}"


async def check_permissions(bus: Bus, *, publish: Sequence[str], subscribe: Sequence[str]) -> list[Denied]:
    """What of these subjects (wildcards stand for all they cover) is not allowed. Raises `BusUnavailable`.

    The bus's own inbox is checked too, and the question itself: a user who may not ask gets a `Denied` for that.
    """
    try:
        answer = await bus.request(USER_INFO, timeout_s=_TIMEOUT_S)
    except BusDenied:
        user = bus.settings.user or ""
        if USER_INFO in bus.denials:
            return [Denied("publish", USER_INFO, user)]
        return [Denied("subscribe", f"{bus.settings.inbox_prefix}.>", user)]
    except (NoResponders, DeadlineExceeded) as error:
        raise BusUnavailable(f"the NATS server does not tell permissions: {error.message}") from error
    user, rules = _rules(answer.payload)
    wanted = [("publish", subject) for subject in publish]
    wanted += [("subscribe", subject) for subject in (*subscribe, f"{bus.settings.inbox_prefix}.>")]
    return [
        Denied(cast(Literal["publish", "subscribe"], action), subject, user)
        for action, subject in wanted
        if not allowed(subject, rules.get(action))
    ]


def _rules(payload: bytes) -> tuple[str, dict[str, Any]]:
    found: dict[str, Any] = orjson.loads(payload).get("data") or {}
    return str(found.get("user", "")), found.get("permissions") or {}


def allowed(subject: str, rule: dict[str, Any] | None) -> bool:
    """Whether a rule (`allow` and `deny` lists; none of them means yes) lets all of `subject` through."""
    if not rule:
        return True
    allow: list[str] = rule.get("allow") or []
    deny: list[str] = rule.get("deny") or []
    if any(overlaps(_bare(pattern), subject) for pattern in deny):
        return False
    return not allow or any(covers(_bare(pattern), subject) for pattern in allow)


def _bare(pattern: str) -> str:
    # a rule for subscriptions may end in a queue group, which narrows it; Puna's groups are allowed with the subject
    return pattern.split(" ")[0]


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that `subject` stands for is one that `pattern` stands for."""
    have, want = pattern.split("."), subject.split(".")
    for index, part in enumerate(have):
        if part == ">":
            return len(want) > index
        if index >= len(want) or want[index] == ">" or (part != "*" and part != want[index]):
            return False
    return len(have) == len(want)


def overlaps(one: str, other: str) -> bool:
    """Whether some subject is meant by both."""
    left, right = one.split("."), other.split(".")
    for mine, theirs in zip(left, right, strict=False):
        if ">" in (mine, theirs):
            return True
        if "*" not in (mine, theirs) and mine != theirs:
            return False
    return len(left) == len(right)


async def require_permissions(bus: Bus, *, publish: Sequence[str], subscribe: Sequence[str]) -> None:
    """Raise `BusDenied` that names all that is missing, so that an operator mends it in one go.

    A user who may not ask for its own permissions is told so in the log and let through. Raises `BusUnavailable`.
    """
    denied = await check_permissions(bus, publish=publish, subscribe=subscribe)
    if any(each.subject == USER_INFO for each in denied):
        log.warning("permissions_unknown", extra={"event": "permissions_unknown", "allow_publish": USER_INFO})
        return
    if denied:
        missing = "; ".join(str(each) for each in denied)
        raise BusDenied(f"{missing}. Allow it in the server's configuration, under `permissions` of this user")
