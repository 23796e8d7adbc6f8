"""The supervisor: one `Wire` after the other, for ever.

Rules: subscriptions are replayed before anything else goes out on a new wire, so whoever can publish can be answered;
`connected` waits for the server's answer to that. A failed try changes the next wait and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from bus.backoff import Backoff
from bus.client import tls_context
from bus.errors import BusRefused
from bus.settings import NatsSettings
from bus.subscription import Table
from bus.wire import Traffic, Wire
from schemas.errors import BusUnavailable

log = logging.getLogger(__name__)

REPLAY_TIMEOUT_S: Final = 5.0
STEADY_S: Final = 5.0
"""A connection that held this long was a good one: the next outage starts with short waits again."""
_CANCEL_AGAIN_S: Final = 0.2
_LOG_EVERY_TRIES: Final = 20
_REFUSALS: Final = ("authoriz", "authentic", "nkey", "jwt", "credential", "seed")


class Link:
    """Owner of the connection. `wire` is what commands are written to; None while there is none."""

    def __init__(
        self,
        settings: NatsSettings,
        table: Table,
        *,
        name: str,
        join_s: float,
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        on_error: Callable[[str], None],
        on_fault: Callable[[str, BaseException], None],
    ) -> None:
        self._settings = settings
        self._table = table
        self._name = name
        self._join_s = join_s
        self._on_up, self._on_down = on_up, on_down
        self._on_error, self._on_fault = on_error, on_fault
        self._tls: ssl.SSLContext | None = tls_context(settings)
        self._up = asyncio.Event()
        self._refused: asyncio.Future[BusRefused] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._discovered: tuple[str, ...] = ()
        self._next_server = 0
        self._last: BusUnavailable | None = None
        self.traffic = Traffic()
        self.wire: Wire | None = None
        self.connected = False
        self.session = 0
        self.max_payload = 1 << 20
        self.server_version = ""
        self.trouble = "no connection was tried yet"

    # -- for the bus ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to connect, and never stop."""
        self._task = asyncio.create_task(self._live(), name=f"{self._name}-bus")
        self._task.add_done_callback(self._ended)

    async def first(self, timeout_s: float) -> None:
        """Until connected. Raises `BusRefused` as soon as a server refuses us, `BusUnavailable` after `timeout_s`."""
        ready = asyncio.ensure_future(self._up.wait())
        try:
            await asyncio.wait([ready, self._refused], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._refused.done() and not self.connected:
            raise self._refused.result()
        if not self.connected:
            raise self.unavailable(f"no NATS server answered within {timeout_s:g} s")

    async def ready(self, timeout_s: float) -> None:
        """Until connected. Raises `BusUnavailable` after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise self.unavailable(f"not connected to NATS within {timeout_s:g} s") from None

    async def round_trip(self, timeout_s: float) -> None:
        """Until the server has worked off all that was sent. Raises `BusUnavailable`."""
        if self.wire is None:
            raise self.unavailable("not connected to NATS")
        try:
            async with asyncio.timeout(timeout_s):
                await self.wire.round_trip()
        except (TimeoutError, ConnectionError):
            raise self.unavailable("the NATS server did not answer") from None

    async def close(self) -> None:
        """End the connection in peace, and the supervision with it. Safe to call twice."""
        task, self._task, wire = self._task, None, self.wire
        if wire is not None:
            await wire.close()
        while task is not None and not task.done():
            task.cancel()  # again: nats-py takes one that comes while it connects for a failed try
            await asyncio.wait([task], timeout=_CANCEL_AGAIN_S)
        self.trouble = "closed"

    def unavailable(self, what: str) -> BusUnavailable:
        """The error for a caller who needs a connection now."""
        where = ", ".join(self._settings.servers)
        return BusUnavailable(f"{what} ({where}: {self.trouble}); is nats-server running there?", retry_after_s=1.0)

    # -- the one task -----------------------------------------------------------------------------------------------
    def _ended(self, task: asyncio.Task[None]) -> None:
        if task is self._task and not task.cancelled():
            log.critical("bus supervisor died", exc_info=task.exception(), extra={"event": "bus.supervisor_died"})
            self.start()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(since_s=loop.time())
        wire = await self._try()
        while True:
            if wire is not None:
                began_s = loop.time()
                await self._serve(wire)
                if loop.time() - began_s > STEADY_S:
                    backoff = Backoff(since_s=loop.time())
            dice = random.random()  # noqa: S311 (jitter, not a secret)
            refused = isinstance(self._last, BusRefused)
            await asyncio.sleep(backoff.next_s(now_s=loop.time(), dice=dice, refused=refused))
            wire = await self._try()
            self._log_trouble(backoff.tries, wire is None)

    async def _try(self) -> Wire | None:
        """One try at the next server; None, with the reason in `trouble`, if it failed."""
        servers = (*self._settings.servers, *self._discovered)
        server = servers[self._next_server % len(servers)]
        self._next_server += 1
        try:
            wire = await self._open(server)
        except Exception as error:
            self._last = translated(error, server)
            log.debug("connect failed", exc_info=True, extra={"event": "bus.connect_failed", "server": server})
            self._fail(self._last)
            return None
        self._last = None
        self._next_server -= 1  # a server that worked is the first to be tried again
        return wire

    def _fail(self, error: BusUnavailable) -> None:
        self.trouble = error.message
        if isinstance(error, BusRefused) and not self._refused.done():
            self._refused.set_result(error)

    async def _open(self, server: str) -> Wire:
        wire = Wire(
            self._table.plain,
            self._table.headed,
            settings=self._settings,
            on_error=self._on_error,
            on_fault=self._on_fault,
            on_info=self._learn,
            on_lost=self._gone,
            join_s=self._join_s,
            traffic=self.traffic,
        )
        hostname = urlsplit(self._settings.servers[0]).hostname if server in self._discovered else None
        await wire.open(server, name=self._name, tls=self._tls, tls_hostname=hostname)
        try:
            await self._replay(wire)
        except BaseException:
            wire.lose("subscriptions were not replayed")
            raise
        return wire

    async def _replay(self, wire: Wire) -> None:
        self.session += 1
        for command in self._table.replay():
            wire.send(command)
        self.wire = wire  # from here on the commands of others come behind the subscriptions
        async with asyncio.timeout(REPLAY_TIMEOUT_S):
            await wire.round_trip()

    async def _serve(self, wire: Wire) -> None:
        """From the first moment of a session to its last."""
        self.connected = True
        self._up.set()
        log.info("connected", extra={"event": "bus.connected", "session": self.session})
        self._on_up()
        try:
            self.trouble = await asyncio.shield(wire.lost)
        finally:
            self._gone(wire)
            log.warning("disconnected", extra={"event": "bus.lost", "session": self.session, "reason": wire.reason})
            self._on_down(wire.reason)

    def _gone(self, wire: Wire) -> None:
        # in the same tick as the loss: what is published from now on must fail, not vanish
        if self.wire is wire:
            self.wire, self.connected = None, False
            self._up.clear()

    def _learn(self, info: dict[str, Any]) -> None:
        self.max_payload = int(info.get("max_payload", self.max_payload))
        self.server_version = str(info.get("version", self.server_version))
        scheme = "tls" if self._settings.wants_tls else "nats"
        found = (f"{scheme}://{address}" for address in info.get("connect_urls") or ())
        self._discovered = tuple(server for server in found if server not in self._settings.servers)

    def _log_trouble(self, tries: int, failed: bool) -> None:
        if failed and (tries == 1 or tries % _LOG_EVERY_TRIES == 0):
            log.warning("no connection", extra={"event": "bus.trouble", "tries": tries, "reason": self.trouble})


def translated(error: Exception, server: str) -> BusUnavailable:
    """What a failed try means to the one who runs this. The texts of nats-py and ssl hold no secrets."""
    if isinstance(error, BusUnavailable):
        return error
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLError):
        return BusRefused(f"TLS with {server} failed: {text}; check tls_ca_file and the certificate's names")
    if isinstance(error, TimeoutError):
        return BusUnavailable("no answer; frozen, or not a NATS server", retry_after_s=1.0)
    if isinstance(error, FileNotFoundError | PermissionError) or any(word in text.lower() for word in _REFUSALS):
        return BusRefused(f"{server} refuses us: {text}; check user, password, token, nkey or creds file")
    return BusUnavailable(text, retry_after_s=1.0)
