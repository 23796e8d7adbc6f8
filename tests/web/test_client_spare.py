"""A client that keeps one socket open ahead of the next request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from web import Client

OK = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"


class Engine:
    """Counts connections and answers each request once; `drop` closes what is open."""

    def __init__(self) -> None:
        self.opened: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self.answered_on: list[int] = []
        self.accepted = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        number = self.accepted
        self.opened.put_nowait(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.answered_on.append(number)
            writer.write(OK)
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = Engine()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[Client]:
    made = Client("127.0.0.1", engine.port, spare=True)
    yield made
    made.close()


async def ask(client: Client) -> Any:
    return (await client.fetch("GET", "/", timeout_s=5)).body


async def connected(engine: Engine) -> asyncio.StreamWriter:
    return await asyncio.wait_for(engine.opened.get(), 5)


async def test_the_next_request_finds_a_socket_open(engine: Engine, client: Client) -> None:
    assert await ask(client) == b"ok"
    for _ in range(2):
        await connected(engine)
    assert engine.answered_on == [1]
    assert await ask(client) == b"ok"
    assert engine.answered_on == [1, 2]


async def test_a_spare_that_the_engine_closed_costs_nothing(engine: Engine, client: Client) -> None:
    await ask(client)
    await connected(engine)
    (await connected(engine)).close()
    assert await ask(client) == b"ok"


async def test_a_closed_client_opens_no_spare(engine: Engine, client: Client) -> None:
    await ask(client)
    client.close()
    other = Client("127.0.0.1", engine.port)
    assert await ask(other) == b"ok"
    other.close()
    assert engine.accepted == 2


async def test_an_engine_that_is_gone_is_told_to_the_request_not_by_the_spare(engine: Engine, client: Client) -> None:
    await ask(client)
    await connected(engine)
    (await connected(engine)).transport.abort()
    assert await ask(client) == b"ok"
