"""A server on a free port, and a client that is nothing but a socket: it sends what it is told, byte for byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest
import uvloop

from web import Exchange, Limits, Server


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Both loops: uvloop is what production runs, and the two differ in how they join writes and close."""
    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
async def no_exception_escapes() -> AsyncIterator[None]:
    """What a protocol's callback raises ends in the loop's handler, where no test would see it."""
    escaped: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: escaped.append(context))
    yield
    assert escaped == []


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    """Without the chunks' framing."""


class Wire:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> tuple[int, dict[str, str]]:
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines)

    async def chunk(self) -> bytes:
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self, *, bodiless: bool = False) -> Answer:
        status, headers = await self.head()
        body = b""
        if bodiless:
            pass
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif "transfer-encoding" in headers:
            while chunk := await self.chunk():
                body += chunk
        elif status != 204:
            body = await self.reader.read()
        return Answer(status, headers, body)

    async def ended(self) -> bytes:
        """What still comes until the server closes; a reset counts as b"reset"."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b"reset"

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


class House(NamedTuple):
    """A running server and the way to it."""

    server: Server
    host: str
    port: int

    async def dial(self, **options: Any) -> Wire:
        return Wire(*await asyncio.open_connection(self.host, self.port, **options))

    async def ask(self, data: bytes) -> Answer:
        wire = await self.dial()
        wire.send(data)
        answer = await wire.answer()
        wire.close()
        return answer


Serve = Callable[..., Awaitable[House]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """`await serve(handler, **limits)` starts a server; all are stopped at the end."""
    running: list[Server] = []

    async def start(
        handler: Callable[[Exchange], None], *, server: dict[str, Any] | None = None, **limits: Any
    ) -> House:
        made = Server(handler, limits=Limits(**limits), **(server or {}))
        running.append(made)
        return House(made, *await made.start("127.0.0.1", 0))

    yield start
    for server in running:
        await server.stop(0)


@pytest.fixture
def echo() -> Callable[[Exchange], None]:
    """Answers with method, target and body."""

    def handler(exchange: Exchange) -> None:
        request = exchange.request
        exchange.respond(200, f"{request.method} {request.target} ".encode() + request.body, content_type="text/plain")

    return handler


@pytest.fixture
def held() -> Any:
    """A handler that answers nothing: the exchanges come out of `await held.next()`."""

    class Held:
        def __init__(self) -> None:
            self.exchanges: asyncio.Queue[Exchange] = asyncio.Queue()

        def __call__(self, exchange: Exchange) -> None:
            self.exchanges.put_nowait(exchange)

        async def next(self) -> Exchange:
            return await self.exchanges.get()

    return Held()
