"""A connection after its handshake: bytes in → handlers, commands out → one write a loop tick.

It lives once: the first thing that goes wrong ends it (`lose`), and `bus.link` makes the next.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson

from bus.client import Handshake
from bus.parser import Headed, Parser, Plain, ProtocolBroken
from bus.settings import NatsSettings
from bus.socket import NO_DESCRIPTOR, descriptor_of, write_at_once

PINGS_OUTSTANDING: Final = 2
LAZY_S: Final = 0.002
"""How long a command that nobody waits for may stay, to leave together with others."""
CROWD_COMMANDS: Final = 4
"""Commands within the join window from which on what follows a write is joined."""
HEADERS_ROOM_BYTES: Final = 1 << 16
"""A message may be this much over `max_payload`: control line, and what a server adds to headers."""


@dataclass(slots=True)
class Traffic:
    """Bytes to and from the server, of all connections of one bus together."""

    received_bytes: int = 0
    sent_bytes: int = 0


class Wire(asyncio.Protocol):
    """The socket after the handshake: bytes in → handlers, commands out → one write a loop tick."""

    def __init__(
        self,
        plain: dict[str, Plain],
        headed: dict[str, Headed],
        *,
        settings: NatsSettings,
        on_error: Callable[[str], None],
        on_fault: Callable[[str, BaseException], None],
        on_info: Callable[[dict[str, Any]], None],
        on_lost: Callable[[Wire], None],
        join_s: float,
        traffic: Traffic | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._settings = settings
        self._on_error = on_error
        self._on_info = on_info
        self._on_lost = on_lost
        self._join_s = join_s
        self._traffic = traffic or Traffic()
        self._parser = Parser(plain, headed, control=self._control, fault=on_fault, limit_bytes=1 << 30)
        self._handshake: Handshake | None = None
        self._transport: asyncio.Transport | None = None
        self._descriptor = NO_DESCRIPTOR
        self._out: list[bytes] = []
        self._scheduled = False
        self._lazy_timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._flushed_at = self._window_at = 0.0
        self._sent = 0
        self._crowded = False
        self._pongs: deque[asyncio.Future[None] | None] = deque()
        self._ping_timer: asyncio.TimerHandle | None = None
        self.pending_bytes = 0
        self.max_payload = 1 << 20
        self.reason = ""
        self.lost: asyncio.Future[str] = self._loop.create_future()

    # -- life -------------------------------------------------------------------------------------------------------
    async def open(self, server: str, *, name: str, tls: ssl.SSLContext | None, tls_hostname: str | None) -> None:
        """Connect, authenticate and take the socket over. Raises what nats-py, ssl or the socket raise."""
        handshake = Handshake(self._settings)
        try:
            await handshake.run(server, name=name, tls=tls, tls_hostname=tls_hostname)
            self._take_over(handshake)
        except BaseException:
            handshake.abort()
            raise

    def _take_over(self, handshake: Handshake) -> None:
        self._handshake = handshake  # its StreamWriter closes the socket once it is forgotten
        self._transport, left, ended = handshake.take()
        self._descriptor = descriptor_of(self._transport)
        self._transport.set_protocol(self)
        self._learn(handshake.server_info())
        self._ping_timer = self._loop.call_later(self._settings.ping_interval_s, self._ping_due)
        if left:
            self.data_received(left)
        if ended:
            self.lose("the server closed the connection")

    def lose(self, reason: str) -> None:
        """Give the connection up. Safe to call twice; the first reason stays."""
        if not self.lost.done():
            self.reason = self.reason or reason
            self.lost.set_result(self.reason)
            self._on_lost(self)
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        for pong in self._pongs:
            if pong is not None and not pong.done():
                pong.set_exception(ConnectionError(self.reason))
        self._pongs.clear()
        self._out.clear()
        self.pending_bytes = 0
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Write what waits and end the connection in peace."""
        self._flush()
        if self._transport is not None:
            self._transport.close()
            await asyncio.wait([self.lost], timeout=0.5)
        self.lose("closed")

    # -- in ---------------------------------------------------------------------------------------------------------
    def data_received(self, data: bytes) -> None:
        """asyncio: bytes from the server."""
        self._traffic.received_bytes += len(data)
        try:
            self._parser.feed(data)
        except ProtocolBroken as error:
            self.lose(f"protocol error: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the socket is gone."""
        self.lose(str(exc) if exc else "the server closed the connection")

    def _control(self, line: bytes) -> None:
        if line.startswith(b"PING"):
            self.send(b"PONG\r\n")
        elif line.startswith(b"PONG"):
            self._pong()
        elif line.startswith(b"-ERR"):
            text = str(line[4:], "utf-8", "replace").strip().strip("'")
            if not text.lower().startswith("permissions violation"):
                self.reason = self.reason or text
            self._on_error(text)
        elif line.startswith(b"INFO"):
            self._learn(_parsed_info(line))
        elif not line.startswith(b"+OK"):
            raise ProtocolBroken(f"unknown operation {line[:8]!r}")

    def _learn(self, info: dict[str, Any]) -> None:
        self.max_payload = int(info.get("max_payload", self.max_payload))
        self._parser.limit_bytes = self.max_payload + HEADERS_ROOM_BYTES
        self._on_info(info)

    # -- out --------------------------------------------------------------------------------------------------------
    def send(self, command: bytes) -> None:
        """Queue a command; all of one loop tick go out in one write."""
        self._out.append(command)
        self.pending_bytes += len(command)
        if not self._scheduled and not self._paused:
            self._schedule()

    def send_now(self, command: bytes) -> None:
        """Queue a command and write all that is queued, unless a write was made just now: somebody waits for it."""
        self._out.append(command)
        self.pending_bytes += len(command)
        if not self._crowded or self._loop.time() - self._flushed_at >= self._join_s:
            self._flush(at_once=True)
        elif not self._scheduled and not self._paused:
            self._schedule()

    def send_lazy(self, command: bytes) -> None:
        """Queue a command that goes with what comes next, or alone after `LAZY_S`."""
        self._out.append(command)
        self.pending_bytes += len(command)
        if not self._scheduled and not self._paused and self._lazy_timer is None:
            self._lazy_timer = self._loop.call_later(LAZY_S, self._lazy_due)

    def _lazy_due(self) -> None:
        self._lazy_timer = None
        if not self._scheduled:
            self._flush()

    def _schedule(self) -> None:
        self._scheduled = True
        wait_s = self._flushed_at + self._join_s - self._loop.time() if self._crowded else 0.0
        if wait_s > 0:
            self._loop.call_later(wait_s, self._flush)
        else:
            self._loop.call_soon(self._flush)

    def _flush(self, *, at_once: bool = False) -> None:
        self._scheduled = False
        if not self._out or self._transport is None or self._paused:
            return
        if self._join_s:
            self._count(len(self._out))
        data = b"".join(self._out) if len(self._out) > 1 else self._out[0]
        self._out.clear()
        self.pending_bytes = 0
        self._traffic.sent_bytes += len(data)
        if at_once:
            write_at_once(self._transport, self._descriptor, data)
        else:
            self._transport.write(data)

    def _count(self, commands: int) -> None:
        """Joining costs every command some delay; it pays where many are sent in each window."""
        now = self._flushed_at = self._loop.time()
        self._sent += commands
        passed_s = now - self._window_at
        if passed_s >= self._join_s:
            self._crowded = self._sent * self._join_s >= CROWD_COMMANDS * passed_s
            self._window_at, self._sent = now, 0

    def pause_writing(self) -> None:
        """asyncio: the socket's buffer is full; what comes now waits in ours, which is bounded."""
        self._paused = True

    def resume_writing(self) -> None:
        """asyncio: there is room again."""
        self._paused = False
        self._flush()

    # -- pings ------------------------------------------------------------------------------------------------------
    async def round_trip(self) -> None:
        """Until the server has worked off all that was sent so far. Raises `ConnectionError` when it is lost."""
        pong: asyncio.Future[None] = self._loop.create_future()
        self._ping(pong)
        await pong

    def _ping(self, pong: asyncio.Future[None] | None) -> None:
        if self.lost.done():
            raise ConnectionError(self.reason)
        self._pongs.append(pong)
        self.send(b"PING\r\n")

    def _pong(self) -> None:
        pong = self._pongs.popleft() if self._pongs else None
        if pong is not None and not pong.done():
            pong.set_result(None)

    def _ping_due(self) -> None:
        if sum(1 for pong in self._pongs if pong is None) >= PINGS_OUTSTANDING:
            self.lose(
                f"the server did not answer {PINGS_OUTSTANDING} pings, {self._settings.ping_interval_s:g} s apart"
            )
            return
        self._ping(None)
        self._ping_timer = self._loop.call_later(self._settings.ping_interval_s, self._ping_due)


def _parsed_info(line: bytes) -> dict[str, Any]:
    try:
        return cast("dict[str, Any]", orjson.loads(line[4:]))
    except orjson.JSONDecodeError as error:
        raise ProtocolBroken("INFO is not JSON") from error
