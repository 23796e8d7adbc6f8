"""An HTTP/1.1 server: listens, shares its limits among the connections, drains."""

from __future__ import annotations

import asyncio
import logging
import ssl as tls
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from schemas.errors import PunaError
from web.connection import Connection
from web.exchange import Exchange
from web.headers import identified
from web.house import House
from web.limits import Limits
from web.message import Header
from web.outlet import JoinWindow

log = logging.getLogger(__name__)

JOIN_WINDOW_S: Final = 0.001
_BACKLOG: Final = 2048
_CUT_WAIT_S: Final = 1.0


class Server:
    """Calls `handler` once for each complete request, from the socket's own callback.

    `join_window_s`: a second chunk of one response within this time waits for the end of it; 0 turns that off.
    `on_error` renders the body of the server's own refusals and failures; `refusal_headers` gives their headers, from
    those of the request as far as they are known (none at all where it was no HTTP). The default gives `x-request-id`.
    """

    def __init__(
        self,
        handler: Callable[[Exchange], None],
        *,
        limits: Limits | None = None,
        ssl: tls.SSLContext | None = None,
        on_error: Callable[[PunaError], bytes] = PunaError.body,
        refusal_headers: Callable[[Mapping[str, str]], Sequence[Header]] = identified,
        join_window_s: float = JOIN_WINDOW_S,
    ) -> None:
        self._handler = handler
        self._limits = limits or Limits()
        self._ssl = ssl
        self._on_error = on_error
        self._refusal_headers = refusal_headers
        self._join_window_s = join_window_s
        self._house: House | None = None
        self._listener: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._house.connections) if self._house else 0

    async def start(self, host: str, port: int, *, reuse_port: bool = False) -> tuple[str, int]:
        """Listen; 0 lets the system choose the port. Returns the address in use. Raises `OSError` if it is taken."""
        loop = asyncio.get_running_loop()
        window = JoinWindow(loop, self._join_window_s)
        house = self._house = House(loop, self._handler, self._limits, window, self._on_error, self._refusal_headers)
        self._listener = await loop.create_server(
            lambda: Connection(house),
            host,
            port,
            ssl=self._ssl,
            backlog=_BACKLOG,
            reuse_port=reuse_port or None,
            ssl_handshake_timeout=self._limits.header_s if self._ssl else None,
        )
        self._schedule_sweep(house)
        address = self._listener.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    async def stop(self, grace_s: float) -> None:
        """Take no more, let what runs end within `grace_s`, then cut it. Safe to call twice."""
        house, listener = self._house, self._listener
        if house is None or listener is None:
            return
        listener.close()
        house.draining = True
        for connection in tuple(house.connections):
            connection.drain()
        await self._emptied(house, grace_s)
        if house.connections:
            log.warning("requests_cut", extra={"event": "requests_cut", "connections": len(house.connections)})
            for connection in tuple(house.connections):
                connection.kill()
            await self._emptied(house, _CUT_WAIT_S)
        if self._sweep is not None:
            self._sweep.cancel()

    async def _emptied(self, house: House, timeout_s: float) -> None:
        house.emptied.clear()
        if not house.connections:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await house.emptied.wait()
        except TimeoutError:
            log.debug("connections_remain", extra={"event": "connections_remain", "count": len(house.connections)})

    def _schedule_sweep(self, house: House) -> None:
        """One timer looks after all connections: a timer each would cost more than the requests do."""
        limits = self._limits
        shortest_s = min(limits.idle_s, limits.header_s, limits.body_s, limits.write_stall_s, limits.linger_s)
        period_s = min(max(shortest_s / 4, 0.01), 0.5)

        def sweep() -> None:
            self._sweep = house.loop.call_later(period_s, sweep)
            now = house.loop.time()
            for connection in tuple(house.connections):
                connection.sweep(now)

        self._sweep = house.loop.call_later(period_s, sweep)
