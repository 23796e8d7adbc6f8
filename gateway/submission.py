"""Into a model's line and out of it again.

The usual way is plain: published in the call that brings the request, its ack a call out of the socket's callback.
What goes wrong is mended by `Line.tick` and by timers; only a body for the object store takes a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from bus.blobs import Blobs
from bus.connection import Bus, PubAck
from bus.errors import NoStream
from bus.topology import delete_message
from bus.watched import Tasks
from gateway.settings import GatewaySettings
from gateway.stream import Stream
from schemas.errors import BusUnavailable, PunaError
from schemas.request import RequestHead

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.05
"""Between two tries to publish: a topology is being made, or an ack did not come."""
ACK_WAIT_S: Final = 2.0
HEADERS_ROOM_BYTES: Final = 2048
"""What the headers of a request may add to its body."""

Refused = Callable[[Stream, PunaError], None]


@dataclass(eq=False, slots=True)
class _Entry:
    """One epoch of a stream on its way into the line. A newer submission of the stream ends it quietly; so does an
    `accept`, which may well come before the ack."""

    stream: Stream
    submission: int
    epoch: int
    give_up_at: float
    stood: bool
    """It was in the line once: then a bus that is away is no reason to refuse it, the next session puts it back."""
    session: int = 0
    parked: bool = False
    """It waits for the bus to come back."""
    sent_at: float | None = None
    """When it was published, while its ack is awaited."""
    token: str = ""

    @property
    def wanted(self) -> bool:
        return self.stream.waiting and self.stream.submission == self.submission


class Line:
    """Publishes requests, with the stream's own name and epoch as message id, so that a repetition is no second one.
    `refused` hears of a stream that cannot be put into its line."""

    def __init__(self, bus: Bus, settings: GatewaySettings, gateway: str, tasks: Tasks, refused: Refused) -> None:
        self._bus = bus
        self._settings = settings
        self._gateway = gateway
        self._tasks = tasks
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._blobs = Blobs(bus, bus.names.bucket_blobs)
        self._entries: set[_Entry] = set()

    def enter(self, stream: Stream) -> None:
        """Publish the present epoch of `stream`, now or as soon as the bus lets us within `bus_wait_s`."""
        stream.submission += 1
        give_up_at = self._loop.time() + self._settings.bus_wait_s
        entry = _Entry(stream, stream.submission, stream.epoch, give_up_at, stood=stream.line_sequence is not None)
        self._entries.add(entry)
        self._try(entry)

    def tick(self, now: float) -> None:
        """Entries whose ack stays away, and those that the bus did not take."""
        for entry in tuple(self._entries):
            if entry.parked and (now >= entry.give_up_at or self._bus.connected):
                self._try(entry)
            elif entry.sent_at is not None and now - entry.sent_at >= ACK_WAIT_S:
                self._bus.forget(entry.token)
                self._failed(
                    entry, BusUnavailable(f"JetStream did not confirm within {ACK_WAIT_S:g} s", retry_after_s=1)
                )

    def leave(self, sequence: int) -> None:
        """Take a request out of the line. One that a worker has taken meanwhile hears `gone` from us."""
        self._tasks.start(f"leave-{sequence}", self._leave(sequence))

    def clear(self, blob: str) -> None:
        """Remove the body of a request that is over. One that stays behind ages away."""
        self._tasks.start(f"clear-{blob}", self._clear(blob))

    def head(self, stream: Stream, now: float, *, blob: str | None = None, engine: str | None = None) -> RequestHead:
        """The head of the present epoch of `stream`."""
        ticket = stream.ticket
        return RequestHead(
            op=ticket.op,
            request_id=ticket.wire_id,
            reply=self._bus.names.reply(self._gateway, stream.token),
            epoch=stream.epoch,
            deadline_s=max(ticket.deadline_at - now, 0.001),
            framed=True,
            tenant=ticket.tenant,
            traceparent=ticket.traceparent,
            blob=blob,
            deaths=stream.deaths,
            engine=engine,
        )

    def fits(self, body: bytes) -> bool:
        """It can travel in a message."""
        return len(body) <= self._bus.max_payload - HEADERS_ROOM_BYTES

    # -- one entry ---------------------------------------------------------------------------------------------------
    def _try(self, entry: _Entry) -> None:
        entry.parked, entry.sent_at = False, None
        if not entry.wanted:
            self._entries.discard(entry)
        elif not self._bus.connected:
            self._park(entry)
        elif self.fits(entry.stream.ticket.body):
            self._publish(entry)
        else:
            self._tasks.start(f"store-{entry.stream.ticket.wire_id}", self._store(entry))

    def _park(self, entry: _Entry) -> None:
        """A new session puts all that waits into the line; all that is left to do is to give up in time."""
        entry.parked = True
        if self._loop.time() >= entry.give_up_at:
            self._refuse(entry, BusUnavailable("not connected to NATS", retry_after_s=1))

    def _publish(self, entry: _Entry, blob: str | None = None) -> None:
        stream, now = entry.stream, self._loop.time()
        ticket, head = stream.ticket, self.head(stream, now, blob=blob)
        entry.session, entry.sent_at = self._bus.session, now
        try:
            entry.token = self._bus.js_publish_nowait(
                self._bus.names.queue(ticket.lane, ticket.model),
                ticket.body if blob is None else b"",
                headers=head.headers(),
                msg_id=f"{ticket.wire_id}.{stream.epoch}",
                ttl_s=max(head.deadline_s, 1.0),
                on_ack=partial(self._acked, entry),
                on_error=partial(self._failed, entry),
            )
        except PunaError as error:
            self._failed(entry, error)

    async def _store(self, entry: _Entry) -> None:
        """Put again for each entry: a server that lost the line has lost the blobs too."""
        stream, blob = entry.stream, entry.stream.ticket.wire_id
        entry.session = self._bus.session
        try:
            await self._blobs.put(blob, stream.ticket.body)
        except PunaError as error:
            self._failed(entry, error)
            return
        stream.in_store = True
        if entry.wanted:
            self._publish(entry, blob)
        else:
            self._entries.discard(entry)
            if stream.done:
                self.clear(blob)

    def _acked(self, entry: _Entry, ack: PubAck) -> None:
        self._entries.discard(entry)
        stream = entry.stream
        if stream.waiting and stream.epoch == entry.epoch:
            stream.line_sequence = ack.sequence
        elif stream.done and stream.node is None:
            self.leave(ack.sequence)

    def _failed(self, entry: _Entry, error: PunaError) -> None:
        """Once more, as long as waiting may help: the stream is being made, an ack was lost, the session has gone."""
        entry.sent_at = None
        late, session = self._loop.time() >= entry.give_up_at, self._bus.session
        lasting = not isinstance(error, BusUnavailable) or not error.retryable
        if not entry.wanted:
            self._entries.discard(entry)
        elif lasting or (late and (session == entry.session or isinstance(error, NoStream))):
            self._refuse(entry, error)
        else:
            self._later(entry)

    def _later(self, entry: _Entry) -> None:
        self._loop.call_later(PAUSE_S, self._try, entry)

    def _refuse(self, entry: _Entry, error: PunaError) -> None:
        self._entries.discard(entry)
        if entry.wanted and not (entry.stood and isinstance(error, BusUnavailable)):
            self._refused(entry.stream, error)

    # -- what takes an answer ----------------------------------------------------------------------------------------
    async def _leave(self, sequence: int) -> None:
        try:
            await delete_message(self._bus, self._bus.names.stream_queue, sequence)
        except BusUnavailable as error:
            log.info("line_not_left", extra={"event": "line_not_left", "sequence": sequence, "why": error.code})

    async def _clear(self, blob: str) -> None:
        try:
            await self._blobs.delete(blob)
        except BusUnavailable as error:
            log.info("blob_stays", extra={"event": "blob_stays", "request": blob, "why": error.code})
