"""Making connections: names, proxies, TLS. Certificates are always checked.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` are honoured as curl does, and `SSL_CERT_FILE` and
`SSL_CERT_DIR` as OpenSSL does.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from worker.devices import aside
from worker.sources import Denied, Unreachable, Unsupported
from worker.transfer.connection import Connection

EACH_ADDRESS_S: Final = 5.0
"""A name with several addresses: the next one is tried after this."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go: what credentials and pools are bound to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises `Unsupported` for what is no http(s) URL."""
        try:
            parts = urlsplit(url)
            port = {"https": 443, "http": 80}.get(parts.scheme, 0) if parts.port is None else parts.port
        except ValueError as error:
            raise Unsupported("the URL cannot be read") from error
        if not port or not parts.hostname:
            raise Unsupported(f"{parts.scheme or 'no scheme'}: only http and https are fetched")
        return cls(parts.scheme, parts.hostname.lower(), port)

    @property
    def netloc(self) -> str:
        """As it stands in a URL and in `Host`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"https": 443, "http": 80}[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        """As `worker.sources.origin_of` has it: one name for an origin in the whole fleet."""
        return f"{self.scheme}://{self.netloc}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where to connect instead. `headers` are for the proxy alone."""

    host: str
    port: int
    headers: Mapping[str, str]


def proxy_for(origin: Origin) -> Proxy | None:
    """The proxy that the environment names. Raises `Unsupported` for one that is not spoken to over plain HTTP."""
    proxies = getproxies_environment()
    text = proxies.get(origin.scheme) or proxies.get("all")
    if not text or proxy_bypass(f"{origin.host}:{origin.port}") or proxy_bypass(origin.host):
        return None
    parts = urlsplit(text if "://" in text else f"http://{text}")
    if parts.scheme != "http" or not parts.hostname:
        raise Unsupported(f"the proxy for {origin.scheme} is {parts.scheme}://…; only http:// proxies are supported")
    headers: dict[str, str] = {}
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, parts.port or 80, headers)


class Dial:
    """Opens connections; `context` makes the TLS context, once."""

    def __init__(self, timeout_s: float, context: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> None:
        self._timeout_s = timeout_s
        self._make_context = context
        self._context: asyncio.Future[ssl.SSLContext] | None = None

    async def open(self, origin: Origin) -> Connection:
        """A new connection to an origin, by its proxy if it has one. Raises `Unreachable`, `Denied`."""
        proxy = proxy_for(origin)
        try:
            async with asyncio.timeout(self._timeout_s):
                if proxy is None:
                    return await self._direct(origin, origin.host, origin.port, tls=origin.scheme == "https")
                connection = await self._direct(origin, proxy.host, proxy.port, tls=False)
                if origin.scheme == "https":
                    await self._tunnel(connection, origin, proxy)
                return connection
        except TimeoutError as error:
            raise Unreachable(f"{origin}: no connection in {self._timeout_s:g} s") from error
        except ssl.SSLCertVerificationError as error:
            raise Denied(f"{origin}: its certificate is not trusted: {error.verify_message}") from error
        except OSError as error:  # TLS errors too
            raise Unreachable(f"{origin}: {_reason(error)}") from error

    async def _tls(self) -> ssl.SSLContext:
        if self._context is None or self._context.cancelled():
            self._context = aside(self._make_context, "transfer-certificates")
        return await asyncio.shield(self._context)

    async def _direct(self, origin: Origin, host: str, port: int, *, tls: bool) -> Connection:
        context = await self._tls() if tls else None
        name = host if tls else None
        last: OSError = OSError("the name has no address")
        for address in await _addresses(host, port):
            try:
                async with asyncio.timeout(EACH_ADDRESS_S):
                    _, made = await asyncio.get_running_loop().create_connection(
                        lambda: Connection(str(origin)), address, port, ssl=context, server_hostname=name
                    )
                    return made
            except ssl.SSLError:
                raise
            except TimeoutError:
                last = TimeoutError(f"no answer from {address}")
            except OSError as error:
                last = error
        raise last

    async def _tunnel(self, connection: Connection, origin: Origin, proxy: Proxy) -> None:
        place = f"{origin.netloc if ':' in origin.netloc.split(']')[-1] else f'{origin.netloc}:{origin.port}'}"
        try:
            head = await connection.request("CONNECT", place, {"Host": place, **proxy.headers})
            if head.status != 200:
                kind = Denied if head.status == 407 else Unreachable
                raise kind(f"{origin}: the proxy {proxy.host}:{proxy.port} refused with {head.status}")
            loop = asyncio.get_running_loop()
            made = await loop.start_tls(
                connection.transport, connection, await self._tls(), server_hostname=origin.host
            )
            if made is None:
                raise Unreachable(f"{origin}: the proxy closed the tunnel")
            connection.adopt(made)
        except BaseException:
            connection.abort()
            raise


def _reason(error: OSError) -> str:
    """In the system's words: asyncio's name the address again, and not what was wrong with it."""
    if error.errno is not None and error.errno > 0 and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def _addresses(host: str, port: int) -> list[str]:
    """In a thread of its own: a name server that does not answer holds up nothing else."""
    found = await aside(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), "transfer-name")
    return list(dict.fromkeys(str(each[4][0]) for each in found))
