"""What a request's head and body say, checked before anything is routed: who, what, which lane, until when."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.affinity import Conversation, conversation_of
from gateway.fleet import Model
from schemas.errors import InvalidRequest
from schemas.openai import check_body
from schemas.request import DEADLINE_LIMIT_S
from schemas.subjects import INTERACTIVE, LANES
from web import Request
from web.headers import fresh_id

H_LANE: Final = "x-puna-lane"
H_DEADLINE_MS: Final = "x-puna-deadline-ms"
RETRY_LEAST_S: Final = 1.0
RETRY_MOST_S: Final = 60.0
_WIRE_ID_ROOM: Final = 100
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Ticket:
    """One admitted request. Times are seconds of the loop's clock."""

    request_id: str
    """What the client reads in `x-request-id`."""
    wire_id: str
    """Its name on the wire: never used twice, although clients repeat theirs."""
    op: str
    model: str
    lane: str
    stream: bool
    body: bytes
    arrived_at: float
    deadline_at: float
    tenant: str | None = None
    traceparent: str | None = None
    conversation: Conversation | None = None


def admit(request: Request, op: str, *, request_id: str, tenant: str | None, timeout_s: float, now: float) -> Ticket:
    """The request as a ticket. Raises `InvalidRequest` and its kin; `param` names the field or header."""
    headers = request.headers
    lane = _lane(headers)
    deadline_s = _deadline(headers, timeout_s)
    checked = check_body(op, request.body)
    return Ticket(
        request_id=request_id,
        wire_id=f"{request_id[:_WIRE_ID_ROOM]}_{fresh_id()}",
        op=op,
        model=checked.model,
        lane=lane,
        stream=checked.stream,
        body=request.body,
        arrived_at=now,
        deadline_at=now + deadline_s,
        tenant=tenant,
        traceparent=_traceparent(headers),
        conversation=conversation_of(op, checked.fields, size_bytes=len(request.body), tenant=tenant),
    )


def retry_after_s(model: Model | None, waiting: int) -> float:
    """When a refused client may try again: the time in which one waiting request in ten is served, as measured."""
    if model is None or model.service_s is None or not model.slots_total:
        return RETRY_LEAST_S
    return min(max(model.service_s * max(waiting, 1) / model.slots_total / 10, RETRY_LEAST_S), RETRY_MOST_S)


def _lane(headers: Mapping[str, str]) -> str:
    lane = headers.get(H_LANE, INTERACTIVE)
    if lane not in LANES:
        raise InvalidRequest(f"header {H_LANE}: send one of {', '.join(LANES)}", param=H_LANE)
    return lane


def _deadline(headers: Mapping[str, str], default_s: float) -> float:
    text = headers.get(H_DEADLINE_MS)
    if text is None:
        return default_s
    most = int(DEADLINE_LIMIT_S * 1000)
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise InvalidRequest(f"header {H_DEADLINE_MS}: send a whole number from 1 to {most}", param=H_DEADLINE_MS)
    return int(text) / 1000


def _traceparent(headers: Mapping[str, str]) -> str | None:
    given = headers.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else None
