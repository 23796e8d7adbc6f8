"""A request on its way: which operation, for whom, until when, and where its answer goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from schemas import subjects as s
from schemas.errors import InvalidRequest

DEADLINE_DEFAULT_S: Final = 600.0
DEADLINE_LIMIT_S: Final = 3600.0

OPS: Final[dict[str, str]] = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "apply-template": "/apply-template",
    "infill": "/infill",
    "transcriptions": "/v1/audio/transcriptions",
}
"""Operation → path of the engine's endpoint, whose JSON body is the request's payload."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What the headers of a request say. A core request needs none: NATS gives its reply subject."""

    op: str
    request_id: str
    reply: str
    epoch: int = 1
    deadline_s: float = DEADLINE_DEFAULT_S
    framed: bool = False
    tenant: str | None = None
    traceparent: str | None = None
    blob: str | None = None
    """Where a body that is too large for a message stands in the object store; the payload is empty then."""
    deaths: int = 0
    """Engines that died while they worked on it. One that has killed before is a suspect and runs with no other
    suspect beside it."""
    engine: str | None = None
    """The engine that holds the conversation's prompt cache, if the gateway knows: preferred while it has a slot."""

    def headers(self) -> dict[str, str]:
        """The head as NATS headers."""
        out = {
            s.H_OP: self.op,
            s.H_REQUEST: self.request_id,
            s.H_REPLY: self.reply,
            s.H_EPOCH: str(self.epoch),
            s.H_DEADLINE: str(int(self.deadline_s * 1000)),
        }
        if self.framed:
            out[s.H_FRAMES] = "1"
        if self.tenant:
            out[s.H_TENANT] = self.tenant
        if self.traceparent:
            out[s.H_TRACEPARENT] = self.traceparent
        if self.blob:
            out[s.H_BLOB] = self.blob
        if self.deaths:
            out[s.H_DEATHS] = str(self.deaths)
        if self.engine:
            out[s.H_ENGINE] = self.engine
        return out


def head_of(headers: Mapping[str, str] | None, *, op: str | None, reply: str, request_id: str) -> RequestHead:
    """The head of a received request.

    `op`, `reply` and `request_id` are what the message itself says (subject token, NATS reply subject, a fresh id) and
    count where the headers are silent. Raises `InvalidRequest`, which names the header.
    """
    given = headers or {}
    chosen = op or given.get(s.H_OP, "")
    if chosen not in OPS:
        raise InvalidRequest(f"operation {chosen[:40]!r} is none of {', '.join(OPS)}", param=s.H_OP)
    return RequestHead(
        op=chosen,
        request_id=s.check_request_id(given.get(s.H_REQUEST, request_id)),
        reply=given.get(s.H_REPLY, reply),
        epoch=_whole(given, s.H_EPOCH, 1, 1_000_000),
        deadline_s=_whole(given, s.H_DEADLINE, int(DEADLINE_DEFAULT_S * 1000), int(DEADLINE_LIMIT_S * 1000)) / 1000,
        framed=given.get(s.H_FRAMES) == "1",
        tenant=given.get(s.H_TENANT),
        traceparent=given.get(s.H_TRACEPARENT),
        blob=given.get(s.H_BLOB),
        deaths=_whole(given, s.H_DEATHS, 0, 1000),
        engine=_id_or_none(given.get(s.H_ENGINE)),
    )


def _id_or_none(value: str | None) -> str | None:
    return None if value is None else s.check_request_id(value)


def _whole(headers: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = headers.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:12]) <= most and len(text) <= 12):
        raise InvalidRequest(f"header {name} is {text[:40]!r}; send a whole number from 1 to {most}", param=name)
    return int(text)
