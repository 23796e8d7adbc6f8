"""Publishing into streams and asking JetStream's API, as requests with JSON answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import orjson

from bus.errors import NoResponders, NoStream, jetstream_error, publish_error
from bus.message import Message
from schemas.errors import BusUnavailable, DeadlineExceeded, PunaError
from schemas.subjects import H_MSG_ID, H_MSG_TTL

_TTL_LEAST_S: Final = 1


@dataclass(frozen=True, slots=True)
class PubAck:
    """Where a message was stored. `duplicate`: it was there already, under the same `Nats-Msg-Id`."""

    stream: str
    sequence: int
    duplicate: bool


class Requester(Protocol):
    """The part of a bus that this needs."""

    @property
    def settings(self) -> Any:
        """For the JetStream domain."""

    async def request(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> Message:
        """One answer."""
        ...


class JetStream:
    """JetStream over a bus's requests."""

    def __init__(self, bus: Requester) -> None:
        self._bus = bus
        domain = bus.settings.jetstream_domain
        self.prefix: Final = f"$JS.{domain}.API." if domain else "$JS.API."

    async def publish(
        self,
        subject: str,
        payload: bytes,
        headers: Mapping[str, str] | None,
        msg_id: str | None,
        ttl_s: float | None,
        timeout_s: float,
    ) -> PubAck:
        """Raises `LineFull`, `NoStream`, `BusUnavailable`, `JetStreamError`."""
        sent = publish_headers(headers, msg_id, ttl_s)
        try:
            answer = await self._bus.request(subject, payload, headers=sent or None, timeout_s=timeout_s)
        except NoResponders:
            raise _no_stream(subject) from None
        except DeadlineExceeded:
            raise BusUnavailable(f"JetStream did not confirm within {timeout_s:g} s", retry_after_s=1.0) from None
        return ack_of(answer, subject)

    async def api(self, api: str, body: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        """Raises `JetStreamError`, `BusUnavailable`."""
        payload = b"" if body is None else orjson.dumps(body)
        try:
            answer = await self._bus.request(self.prefix + api, payload, timeout_s=timeout_s)
        except NoResponders:
            raise BusUnavailable("JetStream is off; start nats-server with -js", retry_after_s=1.0) from None
        except DeadlineExceeded:
            raise BusUnavailable(f"JetStream did not answer {api} in {timeout_s:g} s", retry_after_s=1.0) from None
        found = _answer(answer)
        if "error" in found:
            raise jetstream_error(found["error"])
        return found


def publish_headers(headers: Mapping[str, str] | None, msg_id: str | None, ttl_s: float | None) -> dict[str, str]:
    """The headers of a message for a stream. A time to live is rounded up to whole seconds."""
    sent = dict(headers or {})
    if msg_id is not None:
        sent[H_MSG_ID] = msg_id
    if ttl_s is not None:
        sent[H_MSG_TTL] = f"{max(_TTL_LEAST_S, math.ceil(ttl_s))}s"
    return sent


def ack_of(message: Message, subject: str) -> PubAck:
    """What JetStream answered to a publish to `subject`. Raises what `JetStream.publish` raises."""
    found = _answer(message)
    if "error" in found:
        raise publish_error(found["error"], subject)
    return PubAck(str(found.get("stream", "")), int(found.get("seq", 0)), bool(found.get("duplicate", False)))


def acknowledged(
    subject: str, on_ack: Callable[[PubAck], None], on_error: Callable[[PunaError], None]
) -> tuple[Callable[[Message], None], Callable[[PunaError], None]]:
    """What an answer to a publish to `subject` means, and what the lack of one does."""

    def answered(message: Message) -> None:
        try:
            ack = ack_of(message, subject)
        except PunaError as error:
            on_error(error)
        else:
            on_ack(ack)

    def failed(error: PunaError) -> None:
        on_error(_no_stream(subject) if isinstance(error, NoResponders) else error)

    return answered, failed


def _no_stream(subject: str) -> NoStream:
    return NoStream(f"no stream takes {subject}", retry_after_s=1.0)


def _answer(message: Message) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", orjson.loads(message.payload))
    except orjson.JSONDecodeError:
        raise BusUnavailable(f"what answered on {message.subject} is not JetStream") from None
