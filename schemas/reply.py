"""The payloads of a framed reply's control frames, and of cancel and credit messages. `data` has none: it is bytes.

Every payload is a JSON object; a reader takes missing fields as their defaults and is deaf to new ones, so that nodes
of two releases work together. A credit message is text: `<stream> <epoch> <next seq>`, one stream a line.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, Self, cast

from pydantic import ValidationError

from schemas.errors import PunaError, from_code
from schemas.frame import BadFrame
from schemas.node import Wire

_REPEATED_BYTES: Final = 512


class Payload(Wire):
    """Base of the control payloads."""

    def encode(self) -> bytes:
        """As JSON, without what is not set."""
        return self.model_dump_json(exclude_none=True).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """The payload in `raw`; nothing at all means every default. Raises `BadFrame`."""
        try:
            return cls.model_validate_json(raw or b"{}")
        except ValidationError as error:
            raise BadFrame(f"not a payload of {cls.__name__}: {error.error_count()} fields are wrong") from error


class Accept(Payload):
    """`accept`: who is about to work on the request."""

    node: str
    engine: str = ""
    device: str = ""


class Open(Payload):
    """`open`: the head of the engine's answer."""

    status: int = 200
    content_type: str = "application/json"


def accept_in(raw: bytes) -> Accept:
    """The payload of an `accept`: the same for all requests of an engine, and read once. Raises `BadFrame`."""
    return _accept(raw) if len(raw) <= _REPEATED_BYTES else Accept.decode(raw)


def open_in(raw: bytes) -> Open:
    """The payload of an `open`, likewise. Raises `BadFrame`."""
    return _open(raw) if len(raw) <= _REPEATED_BYTES else Open.decode(raw)


@lru_cache(maxsize=1024)
def _accept(raw: bytes) -> Accept:
    return Accept.decode(raw)


@lru_cache(maxsize=256)
def _open(raw: bytes) -> Open:
    return Open.decode(raw)


class Ping(Payload):
    """`ping`: where a silent request is."""

    prompt_tokens_done: int | None = None
    prompt_tokens_total: int | None = None
    queue_position: int | None = None
    loading: bool | None = None
    progress: float | None = None


class End(Payload):
    """`end`: the whole answer was sent. `usage` and `timings` are the engine's own objects."""

    data_frames: int | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None


class Failure(Payload):
    """`error`: the request has failed on this node. `body` is the error in OpenAI's shape, the engine's own if it
    answered with one; `retryable` says whether another try may succeed."""

    code: str = "internal_error"
    status: int = 500
    retryable: bool = False
    message: str = ""
    retry_after_s: float | None = None
    body: dict[str, Any] | None = None

    def as_error(self) -> PunaError:
        """The failure as an error of ours: what the peer named, with its own words."""
        return from_code(self.code, self.message or self._said() or "the node gave no reason", param=None)

    def _said(self) -> str:
        inner: object = (self.body or {}).get("error")
        text = cast(dict[str, object], inner).get("message") if isinstance(inner, dict) else None
        return text if isinstance(text, str) else ""


class Cancel(Payload):
    """`puna.node.<node>.cancel`: end the work on a request. Without `epoch`, of every try that the node has."""

    request: str
    epoch: int | None = None


def encode_credit(lines: Iterable[tuple[str, int, int]]) -> bytes:
    """Credit for streams: (stream, epoch, next seq), where all frames before `next seq` have been written out."""
    return b"\n".join(b"%b %d %d" % (stream.encode(), epoch, seq) for stream, epoch, seq in lines)


def decode_credit(raw: bytes) -> list[tuple[str, int, int]]:
    """The lines of a credit message. Raises `BadFrame`."""
    try:
        parts = [line.split(b" ") for line in raw.splitlines() if line]
        return [(stream.decode(), int(epoch), int(seq)) for stream, epoch, seq in parts]
    except ValueError as error:
        raise BadFrame("a credit line is not '<stream> <epoch> <next seq>'") from error
