"""HTTP requests to sources: connections kept per origin, redirects followed, credentials bound to their origin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

from worker.sources import (
    Denied,
    Gated,
    NotThere,
    Signed,
    SourceError,
    Throttled,
    Unreachable,
    shown_url,
)
from worker.transfer.backoff import retry_after_s
from worker.transfer.connection import Connection, Head
from worker.transfer.cooldown import Cooldown
from worker.transfer.dial import Dial, Origin, proxy_for

REDIRECTS: Final = 5
IDLE_S: Final = 20.0
IDLE_PER_ORIGIN: Final = 8
IDLE_IN_ALL: Final = 32
THROTTLED_S: Final = 5.0
"""A 429 that does not say for how long."""
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_AGAIN: Final = (408, 425)
_BODY_SHOWN_BYTES: Final = 4096
_PLAIN: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "puna"}


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer, and the connection that has its body. `url` is where redirects led."""

    head: Head
    connection: Connection
    url: str
    redirected: bool


class RefusedElsewhere(Denied):
    """Another origin, to which the source has led, refuses: perhaps a signature's time is over."""


class Client:
    """Shared by all downloads of a node."""

    def __init__(
        self, dial: Dial, cooldown: Cooldown, *, read_timeout_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.cooldown: Final = cooldown
        self._dial = dial
        self._read_timeout_s = read_timeout_s
        self._clock = clock
        self._idle: dict[Origin, list[Connection]] = {}

    @asynccontextmanager
    async def exchange(
        self, method: str, signed: Signed, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Answer]:
        """One request, redirects followed; the answer has a status below 300, or is a 416. Its body is taken inside.

        `signed.headers` go to their own origin only, and not again once a redirect has left it. Waits while the
        origin wants to be left alone. Raises a `SourceError`.
        """
        answer = await self._follow(method, signed, headers or {})
        try:
            yield answer
        except BaseException:
            answer.connection.abort()
            raise
        self._keep(Origin.of(answer.url), answer.connection)

    async def read(self, signed: Signed, *, limit_bytes: int) -> bytes:
        """A small body, cut at the limit. Raises a `SourceError`."""
        async with self.exchange("GET", signed) as answer, asyncio.timeout(self._read_timeout_s):
            return (await answer.connection.skip(limit_bytes))[:limit_bytes]

    def close(self) -> None:
        """End all idle connections."""
        for connections in self._idle.values():
            for each in connections:
                each.abort()
        self._idle.clear()

    async def _follow(self, method: str, signed: Signed, headers: Mapping[str, str]) -> Answer:
        url, secret, home = signed.url, signed.headers, Origin.of(signed.url)
        for hop in range(REDIRECTS + 1):
            origin = Origin.of(url)
            if origin != home:
                secret = {}
            connection, head = await self._ask(method, origin, url, {**_PLAIN, **secret, **headers})
            if head.status not in _REDIRECTS:
                try:
                    await self._check(head, connection, origin, url)
                except (Denied, NotThere) as error:
                    if origin == home:
                        raise
                    raise RefusedElsewhere(error.message) from error
                return Answer(head, connection, url, hop > 0)
            url = _next(url, head)
            await self._done_with(origin, connection)
        raise Unreachable(f"{signed}: more than {REDIRECTS} redirects")

    async def _ask(self, method: str, origin: Origin, url: str, headers: dict[str, str]) -> tuple[Connection, Head]:
        await self.cooldown.over(str(origin))
        connection = self._take(origin) or await self._dial.open(origin)
        try:
            return connection, await self._send(connection, method, origin, url, headers)
        except Unreachable:
            if not connection.used:
                raise
        connection = await self._dial.open(origin)  # one that was kept had been closed at the other end
        return connection, await self._send(connection, method, origin, url, headers)

    async def _send(
        self, connection: Connection, method: str, origin: Origin, url: str, headers: dict[str, str]
    ) -> Head:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        proxy = proxy_for(origin) if origin.scheme == "http" else None
        if proxy is not None:
            target, headers = f"{origin}{target}", {**headers, **proxy.headers}
        try:
            _check_plain(target, headers)
            async with asyncio.timeout(self._read_timeout_s):
                return await connection.request(method, target, {"Host": origin.netloc, **headers})
        except TimeoutError as error:
            connection.abort()
            raise Unreachable(f"{origin}: no answer in {self._read_timeout_s:g} s") from error
        except BaseException:
            connection.abort()
            raise

    async def _check(self, head: Head, connection: Connection, origin: Origin, url: str) -> None:
        if head.status < 300 or head.status == 416:
            return
        await self._done_with(origin, connection)
        error = refusal(head, url)
        if isinstance(error, Throttled):
            wait_s = THROTTLED_S if error.retry_after_s is None else error.retry_after_s
            await self.cooldown.begin(str(origin), wait_s)
        raise error

    async def _done_with(self, origin: Origin, connection: Connection) -> None:
        try:
            async with asyncio.timeout(self._read_timeout_s):
                await connection.skip(_BODY_SHOWN_BYTES)
        except (SourceError, TimeoutError):
            connection.abort()
        except BaseException:
            connection.abort()
            raise
        self._keep(origin, connection)

    def _take(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.usable and self._clock() - connection.idle_since_s < IDLE_S:
                return connection
            connection.abort()
        return None

    def _keep(self, origin: Origin, connection: Connection) -> None:
        idle = self._idle.setdefault(origin, [])
        if not connection.usable or len(idle) >= IDLE_PER_ORIGIN or self._idle_count() >= IDLE_IN_ALL:
            connection.abort()
            return
        connection.used, connection.idle_since_s = True, self._clock()
        connection.listen()
        idle.append(connection)

    def _idle_count(self) -> int:
        return sum(len(each) for each in self._idle.values())


def refusal(head: Head, url: str) -> SourceError:
    """The error behind a status."""
    place, status, wait_s = shown_url(url), head.status, retry_after_s(head.headers.get("retry-after"))
    code = head.headers.get("x-error-code", "")
    if status == 429 or (status == 503 and wait_s is not None):
        return Throttled(f"{place}: too many requests ({status})", retry_after_s=wait_s)
    if status >= 500 or status in _AGAIN:
        return Unreachable(f"{place}: the server failed ({status})", retry_after_s=wait_s)
    if code == "GatedRepo":
        return Gated(f"{place}: its terms must be accepted at the source by the owner of the token")
    if status in (404, 410):
        return NotThere(f"{place}: there is no such file ({status})")
    if status in (401, 403):
        return Denied(f"{place}: the credential is missing or not enough ({status})")
    return Denied(f"{place}: refused with {status}")


def _next(url: str, head: Head) -> str:
    place = head.headers.get("location", "")
    try:
        found = urljoin(url, place.encode("latin-1").decode())
        origin = Origin.of(found)
    except (ValueError, SourceError) as error:
        raise Unreachable(f"{shown_url(url)}: redirects to what cannot be fetched") from error
    if not place or (origin.scheme == "http" and urlsplit(url).scheme == "https"):
        raise Unreachable(f"{shown_url(url)}: redirects to {shown_url(found)}, which is not encrypted")
    return found


def _check_plain(target: str, headers: Mapping[str, str]) -> None:
    """A line end in a URL or header would begin another header."""
    for text in (target, *headers, *headers.values()):
        if any(char < " " or char == "\x7f" for char in text):
            raise Denied("a URL or credential holds control characters")
    if not target.isascii() or " " in target:
        raise Denied("a URL holds characters that must be written as %XX")
