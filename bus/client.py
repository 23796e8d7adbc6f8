"""nats-py, as far as Puna uses it: TCP, TLS, INFO, CONNECT, nkeys and JWT of one connection to one server.

Why nats-py ends at the handshake: its reader costs a task switch and a coroutine a message, its own reconnect tells
too late and replays too late, and it closes for ever on most errors. Here a connection lives once: when anything is
wrong it is lost, `bus.link` makes the next one and replays the table of subscriptions that we own.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any, Final, cast

from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from bus.errors import BusRefused
from bus.settings import NatsSettings

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 2


class Handshake(Client):
    """nats-py's client up to the answer to CONNECT, without its tasks, its retries and its trust in the server."""

    def __init__(self, settings: NatsSettings) -> None:
        super().__init__()
        self._settings = settings

    async def _select_next_server(self) -> None:
        # nats-py's own goes round for minutes with its own waits; there is one address and one try
        self._current_server = self._server_pool[0]
        await self._connect_to_server(self._current_server)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        if self._settings.wants_tls and info.get("tls_available"):
            info["tls_required"] = True

    def _connect_command(self) -> bytes:
        # the last moment before credentials go out; nats-py sends them in plain text if the server asks for no TLS
        if self._settings.wants_tls and self.streams()[1].get_extra_info("ssl_object") is None:
            raise BusRefused("TLS is required by the settings, and the NATS server does not offer it; not connecting")
        return super()._connect_command()

    async def _read_loop(self) -> None:
        """Nothing: the socket is read by `Wire`."""

    async def _ping_interval(self) -> None:
        """Nothing: `Wire` pings."""

    async def _flusher(self) -> None:
        """Nothing: `Wire` writes."""

    def streams(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """nats-py's end of the socket."""
        transport = cast(TcpTransport, self._transport)
        return transport._io_reader, transport._io_writer  # pyright: ignore[reportPrivateUsage, reportReturnType]

    def server_info(self) -> dict[str, Any]:
        """The INFO that the server began with."""
        return self._server_info

    async def run(self, server: str, *, name: str, tls: ssl.SSLContext | None, tls_hostname: str | None) -> None:
        """Until the server has accepted us. Raises what nats-py, ssl or the socket raise, or `BusRefused`."""
        async with asyncio.timeout(2 * CONNECT_TIMEOUT_S):
            await self.connect(server, name=name, **_options(self._settings, tls, tls_hostname))

    def take(self) -> tuple[asyncio.Transport, bytes, bool]:
        """The socket, what was read from it and not used, and whether it has ended. Call it right after `run`:
        without an await in between not a byte can pass by."""
        reader, writer = self.streams()
        ended = bool(reader._eof) or writer.transport.is_closing()  # type: ignore[attr-defined] # pyright: ignore
        left = bytes(reader._buffer)  # type: ignore[attr-defined] # pyright: ignore
        return cast(asyncio.Transport, writer.transport), left, ended

    def abort(self) -> None:
        """Cut the socket, if there is one by now."""
        transport = cast(TcpTransport | None, self._transport)
        if transport and transport._io_writer is not None:  # pyright: ignore[reportPrivateUsage]
            transport._io_writer.transport.abort()  # pyright: ignore[reportPrivateUsage]


def _options(settings: NatsSettings, tls: ssl.SSLContext | None, tls_hostname: str | None) -> dict[str, Any]:
    return {
        "allow_reconnect": False,
        "connect_timeout": CONNECT_TIMEOUT_S,
        "error_cb": _note,
        "user": settings.user,
        "password": settings.password.get_secret_value() if settings.password else None,
        "token": settings.token.get_secret_value() if settings.token else _lone_user(settings),
        "nkeys_seed": str(settings.nkey_seed_file) if settings.nkey_seed_file else None,
        "user_credentials": str(settings.creds_file) if settings.creds_file else None,
        "tls": tls,
        "tls_hostname": tls_hostname,
        "tls_handshake_first": settings.tls_first,
    }


def _lone_user(settings: NatsSettings) -> str | None:
    # as the `nats` command line: a user without a password is a token
    return settings.user if settings.password is None else None


async def _note(error: Exception) -> None:
    log.debug("handshake error", extra={"event": "bus.handshake_error", "kind": type(error).__name__})


def tls_context(settings: NatsSettings) -> ssl.SSLContext | None:
    """The context for our certificate and authority; None leaves it to the server (with the system's authorities).

    Raises `BusRefused` when a file cannot be used.
    """
    if not settings.wants_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
        if settings.tls_cert_file:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise BusRefused(f"the TLS files of NATS cannot be used: {error}") from error
    return context
