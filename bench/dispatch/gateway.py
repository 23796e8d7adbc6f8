"""Through the real gateway: HTTP as clients speak it. What it does about silence and failures is its own affair."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from bench.dispatch.driver import Fate
from bench.dispatch.workload import Request
from web.client import Client

_DONE: Final = b"data: [DONE]\n\n"
_ERROR: Final = b'data: {"error":'
_TAIL_BYTES: Final = 1024
_PATH: Final = "/v1/chat/completions"


class Answer:
    """One response, as it comes."""

    def __init__(self, fate: Fate, done: asyncio.Future[None]) -> None:
        self._fate = fate
        self._done = done
        self._status = 0
        self._tail = b""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """The status."""
        self._status = status

    def data(self, data: bytes) -> None:
        """Only the end of it is looked at."""
        self._tail = (self._tail + data)[-_TAIL_BYTES:]

    def end(self) -> None:
        """The whole response is here."""
        self._fate.answered = self._status == 200 and self._tail.endswith(_DONE)
        self._fate.cut = self._status == 200 and _ERROR in self._tail
        if not self._fate.answered:
            self._fate.error = f"status {self._status}" if self._status != 200 else "no [DONE]"
        self._finish()

    def failed(self, error: Exception) -> None:
        """The connection broke."""
        self._fate.error = type(error).__name__
        self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)


class Gateway:
    """The door."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()

    def send(self, request: Request, body: bytes, fate: Fate) -> asyncio.Future[None]:
        """Ask over HTTP."""
        done: asyncio.Future[None] = self._loop.create_future()
        headers = [("x-request-id", f"bench-{request.number}")]
        self._client.stream("POST", _PATH, body, Answer(fate, done), headers=headers)
        return done


@asynccontextmanager
async def gateway(port: int) -> AsyncGenerator[Gateway]:
    """The door, open."""
    client = Client("127.0.0.1", port)
    try:
        yield Gateway(client)
    finally:
        client.close()
