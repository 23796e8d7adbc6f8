"""Into a model's line and out of it again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from bus.blobs import Blobs
from bus.connection import Bus
from bus.errors import NoStream
from bus.topology import delete_message
from gateway.settings import GatewaySettings
from gateway.stream import Stream
from schemas.errors import BusUnavailable, PunaError
from schemas.request import RequestHead

log = logging.getLogger(__name__)

PAUSE_S: Final = 0.05
"""Between two tries to publish: a topology is being made, or an ack did not come."""
HEADERS_ROOM_BYTES: Final = 2048
"""What the headers of a request may add to its body."""

Refused = Callable[[Stream, PunaError], None]


class Line:
    """Publishes requests, with the stream's own name and epoch as message id, so that a repetition is no second one."""

    def __init__(self, bus: Bus, settings: GatewaySettings, gateway: str) -> None:
        self._bus = bus
        self._settings = settings
        self._gateway = gateway
        self._blobs = Blobs(bus, bus.names.bucket_blobs)

    async def enter(self, stream: Stream, refused: Refused) -> None:
        """Publish the present epoch of `stream`; `refused` hears why it cannot be.

        A newer submission of the same stream ends this one quietly. So does an `accept`, which may well come first.
        """
        submission, epoch = stream.submission, stream.epoch
        published = stream.line_sequence is not None
        try:
            sequence = await self._publish(stream, submission)
        except PunaError as error:
            # What stood in the line once waits for the next session, which puts it there again.
            patient = published and isinstance(error, BusUnavailable)
            if stream.waiting and stream.submission == submission and not patient:
                refused(stream, error)
            return
        if sequence is None:
            return
        if stream.waiting and stream.epoch == epoch:
            stream.line_sequence = sequence
        elif stream.done and stream.node is None:
            await self.leave(sequence)

    async def leave(self, sequence: int) -> None:
        """Take a request out of the line. One that a worker has taken meanwhile hears `gone` from us."""
        try:
            await delete_message(self._bus, self._bus.names.stream_queue, sequence)
        except BusUnavailable as error:
            log.info("line_not_left", extra={"event": "line_not_left", "sequence": sequence, "why": error.code})

    async def clear(self, blob: str) -> None:
        """Remove the body of a request that is over. One that stays behind ages away."""
        try:
            await self._blobs.delete(blob)
        except BusUnavailable as error:
            log.info("blob_stays", extra={"event": "blob_stays", "request": blob, "why": error.code})

    async def _publish(self, stream: Stream, submission: int) -> int | None:
        """The sequence in the line, or nothing if nobody wants it any more."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._settings.bus_wait_s
        while stream.waiting and stream.submission == submission:
            left_s = give_up_at - loop.time()
            await self._bus.ready(max(left_s, 0.001))
            session = self._bus.session
            try:
                return await self._send(stream, loop.time())
            except NoStream:
                if loop.time() >= give_up_at:
                    raise
            except BusUnavailable as error:
                if not error.retryable or (loop.time() >= give_up_at and self._bus.session == session):
                    raise
            await asyncio.sleep(PAUSE_S)
        return None

    async def _send(self, stream: Stream, now: float) -> int:
        ticket, names = stream.ticket, self._bus.names
        left_s = max(ticket.deadline_at - now, 0.001)
        head = RequestHead(
            op=ticket.op,
            request_id=ticket.wire_id,
            reply=names.reply(self._gateway, stream.token),
            epoch=stream.epoch,
            deadline_s=left_s,
            framed=True,
            tenant=ticket.tenant,
            traceparent=ticket.traceparent,
        )
        body = ticket.body
        if len(body) > self._bus.max_payload - HEADERS_ROOM_BYTES:
            # Put again for each entry: a server that lost the line has lost the blobs too.
            await self._blobs.put(ticket.wire_id, body)
            head, body, stream.in_store = replace(head, blob=ticket.wire_id), b"", True
        ack = await self._bus.js_publish(
            names.queue(ticket.lane, ticket.model),
            body,
            headers=head.headers(),
            msg_id=f"{ticket.wire_id}.{stream.epoch}",
            ttl_s=max(left_s, 1.0),
        )
        return ack.sequence
