"""A NATS micro service (ADR-32): found by `nats micro ls`, asked with `nats req`, counted in `nats micro stats`.

Rules: a handler that answers at once runs in the socket's callback; one that awaits gets a task of its own, at most
so many an endpoint and for so long. A requester always gets an answer, an error as headers and OpenAI body. Nothing
that a requester sent, and no text of an exception that is not ours, ends up in an answer, in `last_error` or in a log.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from bus.connection import Bus, Message, Subscription
from bus.endpoint import Endpoint, Handler, Tally, send
from bus.message import check_subscription
from schemas.errors import BusUnavailable, InvalidName

log = logging.getLogger(__name__)

SERVICE_PREFIX: Final = "$SRV"
DEFAULT_QUEUE: Final = "q"
"""The queue group of all micro services' endpoints that ask for no other."""
RUNNING_LIMIT_REQUESTS: Final = 16
HANDLER_TIMEOUT_S: Final = 120.0
START_FLUSH_S: Final = 2.0
STOP_GRACE_S: Final = 1.0
_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")
_NUMBER = r"(?:0|[1-9][0-9]*)"
_PRE = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION: Final = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_PRE}(?:\.{_PRE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


class Service:
    """One instance of the service `name`. Endpoints may be added before and after `start`."""

    def __init__(
        self,
        bus: Bus,
        *,
        name: str,
        version: str,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
        prefix: str = SERVICE_PREFIX,
    ) -> None:
        """Raises `InvalidName` for a name that is not `A-Za-z0-9_-` or a version that is not semantic."""
        if not _VERSION.fullmatch(version):
            raise InvalidName(f"version {version[:40]!r} of service {name[:40]!r} is not semantic; write it as 1.2.3")
        self.name: Final = _checked_name(name)
        self.id: Final = secrets.token_hex(11)
        self.version: Final = version
        self._description: Final = description
        self._metadata: Final = dict(metadata or {})
        self._prefix: Final = prefix
        self._bus: Final = bus
        self._started = _now()
        self._endpoints: list[Endpoint] = []
        self._control: list[Subscription] = []

    def endpoint(
        self,
        name: str,
        subject: str,
        handler: Handler,
        *,
        metadata: Mapping[str, str] | None = None,
        queue: str | None = DEFAULT_QUEUE,
        running_limit_requests: int = RUNNING_LIMIT_REQUESTS,
        timeout_s: float = HANDLER_TIMEOUT_S,
    ) -> None:
        """Answer `subject` with what `handler` returns or, if that is awaitable, with what it comes to.

        A `PunaError` from the handler is answered as it is, any other error as a 500. `queue=None`: every instance
        answers. More than `running_limit_requests` awaitables at a time are refused with 503 and `Retry-After`;
        one that takes over `timeout_s` is cancelled and answered with 504. Raises `InvalidName`.
        """
        check_subscription(subject, queue)
        endpoint = Endpoint(
            self._bus,
            {"name": _checked_name(name), "subject": subject, "queue_group": queue or ""},
            handler,
            title=f"{self.name}.{name}",
            metadata=dict(metadata or {}),
            running_limit_requests=running_limit_requests,
            timeout_s=timeout_s,
        )
        self._endpoints.append(endpoint)
        if self._control:
            endpoint.listen()

    async def start(self) -> None:
        """Listen, and wait until the server knows it. Without a connection all is in place for the next one."""
        if self._control:
            return
        self._started = _now()
        for verb, answer in (("PING", self.ping), ("INFO", self.info), ("STATS", self.stats)):
            for subject in self._verb_subjects(verb):
                self._control.append(self._bus.subscribe(subject, self._on(answer)))
        for endpoint in self._endpoints:
            endpoint.listen()
        try:
            await self._bus.flush(START_FLUSH_S)
        except BusUnavailable as error:
            log.info("service waits for NATS", extra={"event": "micro.waits", "service": self.name, "code": error.code})

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Take no more, let what runs end within `grace_s` seconds, answer the rest with 503. May be called twice."""
        for endpoint in self._endpoints:
            endpoint.close()
        await asyncio.gather(*(endpoint.end(grace_s) for endpoint in self._endpoints))
        for subscription in self._control:
            subscription.close()
        self._control.clear()

    def reset(self) -> None:
        """Begin to count anew."""
        self._started = _now()
        for endpoint in self._endpoints:
            endpoint.tally = Tally()

    @property
    def subjects(self) -> list[str]:
        """All that the service subscribes to, for a check of permissions."""
        control = [subject for verb in ("PING", "INFO", "STATS") for subject in self._verb_subjects(verb)]
        return control + [endpoint.identity["subject"] for endpoint in self._endpoints]

    def ping(self) -> dict[str, Any]:
        """The answer to PING."""
        return self._identity("ping")

    def info(self) -> dict[str, Any]:
        """The answer to INFO."""
        endpoints = [{**endpoint.identity, "metadata": endpoint.metadata} for endpoint in self._endpoints]
        return self._identity("info") | {"description": self._description, "endpoints": endpoints}

    def stats(self) -> dict[str, Any]:
        """The answer to STATS; times in nanoseconds."""
        endpoints = [endpoint.stats() for endpoint in self._endpoints]
        return self._identity("stats") | {"started": self._started, "endpoints": endpoints}

    def _identity(self, kind: str) -> dict[str, Any]:
        service = {"name": self.name, "id": self.id, "version": self.version}
        return {"type": f"io.nats.micro.v1.{kind}_response", **service, "metadata": self._metadata}

    def _verb_subjects(self, verb: str) -> list[str]:
        every = f"{self._prefix}.{verb}"
        return [every, f"{every}.{self.name}", f"{every}.{self.name}.{self.id}"]

    def _on(self, answer: Callable[[], dict[str, Any]]) -> Callable[[Message], None]:
        def handler(message: Message) -> None:
            send(self._bus, message.reply, orjson.dumps(answer()), None)

        return handler


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidName(f"{name[:40]!r} cannot name a service or endpoint: use letters, digits, '_' or '-'")
    return name


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
