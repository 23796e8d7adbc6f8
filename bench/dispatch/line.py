"""Straight into the line: framed requests as the gateway publishes them, and the least of a gateway that hears frames.

It answers accepts, credits what came, and gives a request that went silent to the line again under the next epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from bench.dispatch.driver import Fate
from bench.dispatch.workload import Request
from bus.connection import Bus
from bus.settings import NatsSettings
from schemas.errors import BusUnavailable, PunaError
from schemas.frame import ACCEPT, END, ERROR, GO, GONE, LOST_AFTER_S, decode_frame
from schemas.reply import Accept, Failure, encode_credit
from schemas.request import RequestHead
from schemas.subjects import INTERACTIVE

DEADLINE_S: Final = 300.0
LOOK_S: Final = 0.5
CREDIT_EVERY: Final = 2
TRIES_LIMIT: Final = 5


@dataclass(slots=True, eq=False)
class Stream:
    """One request of ours."""

    token: str
    request_id: str
    model: str
    body: bytes
    fate: Fate
    done: asyncio.Future[None]
    epoch: int = 1
    mark: bytes | None = None
    node: str = ""
    next_seq: int = 0
    heard_at: float = 0.0

    @property
    def taken(self) -> bool:
        """A worker has it."""
        return self.mark is not None


class Line:
    """The door to the models' lines."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._me = f"bench{secrets.token_hex(4)}"
        self._streams: dict[str, Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._subscription = bus.subscribe_raw(bus.names.replies(self._me), self._frame)
        self._looks = 0

    def send(self, request: Request, body: bytes, fate: Fate) -> asyncio.Future[None]:
        """Publish it."""
        token = f"s{request.number}"
        stream = Stream(token, f"{self._me}_{request.number}", request.model, body, fate, self._loop.create_future())
        self._streams[token] = stream
        self._publish(stream)
        return stream.done

    def _publish(self, stream: Stream) -> None:
        task = self._loop.create_task(self._enter(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _enter(self, stream: Stream) -> None:
        names = self._bus.names
        head = RequestHead(
            op="chat",
            request_id=stream.request_id,
            reply=names.reply(self._me, stream.token),
            epoch=stream.epoch,
            deadline_s=DEADLINE_S,
            framed=True,
        )
        identity = f"{stream.request_id}.{stream.epoch}"
        subject = names.queue(INTERACTIVE, stream.model)
        try:
            await self._bus.js_publish(subject, stream.body, headers=head.headers(), msg_id=identity, ttl_s=DEADLINE_S)
        except PunaError as error:
            self._over(stream, error.code)

    # -- frames
    def _frame(self, subject: str, reply: str, payload: bytes) -> None:
        stream = self._streams.get(subject.rpartition(".")[2])
        frame = decode_frame(payload)
        if stream is None or frame.epoch != stream.epoch or stream.mark not in (None, frame.mark):
            if frame.kind == ACCEPT and reply:
                self._bus.publish(reply, GONE)
            return
        stream.heard_at = self._loop.time()
        stream.next_seq = max(stream.next_seq, frame.seq + 1)
        if frame.kind == ACCEPT:
            stream.mark, stream.node = frame.mark, Accept.decode(frame.payload).node
            if reply:
                self._bus.publish(reply, GO)
        elif frame.kind == END:
            stream.fate.answered = True
            self._over(stream, None)
        elif frame.kind == ERROR:
            self._failed(stream, Failure.decode(frame.payload))

    def _failed(self, stream: Stream, failure: Failure) -> None:
        if failure.retryable and stream.fate.tries < TRIES_LIMIT:
            self._again(stream)
        else:
            self._over(stream, failure.code)

    def _again(self, stream: Stream) -> None:
        stream.epoch += 1
        stream.fate.tries += 1
        stream.mark, stream.node, stream.next_seq = None, "", 0
        self._publish(stream)

    def _over(self, stream: Stream, error: str | None) -> None:
        stream.fate.error = error
        self._streams.pop(stream.token, None)
        if not stream.done.done():
            stream.done.set_result(None)

    # -- time
    async def look(self) -> None:
        """Credit, and silence, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._loop.time()
            for stream in tuple(self._streams.values()):
                if stream.taken and now - stream.heard_at > LOST_AFTER_S:
                    self._again(stream)
            self._looks += 1
            if self._looks % CREDIT_EVERY == 0:
                self._credit()

    def _credit(self) -> None:
        nodes: dict[str, list[tuple[str, int, int]]] = {}
        for stream in self._streams.values():
            if stream.taken:
                nodes.setdefault(stream.node, []).append((stream.token, stream.epoch, stream.next_seq))
        for node, lines in nodes.items():
            with contextlib.suppress(BusUnavailable):  # the next one says the same
                self._bus.publish(self._bus.names.node(node, "credit"), encode_credit(lines))

    async def close(self) -> None:
        """Hear nothing any more."""
        self._subscription.close()
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def line(nats_url: str) -> AsyncGenerator[Line]:
    """The door, open."""
    bus = await Bus.connect(NatsSettings.model_validate({"url": nats_url}), name="puna-bench")
    door = Line(bus)
    looking = asyncio.create_task(door.look(), name="bench look")
    try:
        yield door
    finally:
        looking.cancel()
        await door.close()
        await bus.close()
