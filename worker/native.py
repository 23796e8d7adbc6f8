"""A broker-native reply: the endpoint's body as one message, or a stream's events as they come and then an empty one.

Nothing tells the requester of a hole, so a stream whose connection breaks ends with an error in the next session. What
could not be sent for want of a connection (a whole body, an error, the end) waits for it, up to `AWAY_LIMIT_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bus.connection import Bus, GoneWatch
from bus.message import error_headers, service_headers
from schemas.errors import BodyTooLarge, BusUnavailable, Cancelled, EngineFailed, PunaError
from schemas.frame import PRESENCE_PROBE_S
from worker.framed import AWAY_LIMIT_S
from worker.reply import Flow, Summary
from worker.sse import pieces
from worker.work import Work

SSE: Final = "text/event-stream"
HEADERS_ROOM_BYTES: Final = 2048
"""What headers may add to a body."""

Headers = dict[str, str] | None


class NativeReply:
    """One answer to a plain NATS client."""

    def __init__(self, bus: Bus, watch: GoneWatch, work: Work, clock: Callable[[], float]) -> None:
        self.token = f"n{id(self):x}"
        """Only for `GoneWatch`: a requester's own inbox may end in anything."""
        self._bus = bus
        self._work = work
        self._clock = clock
        self._subject = work.head.reply
        self._gone_subject = watch.reply(self.token)
        self._flow: Flow | None = None
        self._streaming = False
        self._status = 200
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._unsent: list[tuple[bytes, Headers]] = []
        self._probe_at = 0.0
        self._over = False
        self._said = False
        self._away = False
        self._absent = False
        self._away_since = 0.0

    # -- the engine's side -------------------------------------------------------------------------------------------
    def begin(self, flow: Flow) -> None:
        """Nothing is asked of a plain requester."""
        self._flow = flow

    def open(self, status: int, content_type: str) -> None:
        """A stream is one because the engine says so."""
        self._status = status
        self._streaming = status == 200 and content_type.startswith(SSE)

    def data(self, data: bytes) -> None:
        """Of a stream: out with it. Else: kept for the one message."""
        if self._streaming:
            self._work.claim.settle()
            for piece in pieces(data, self._limit_bytes):
                self._send(piece)
            return
        self._body_bytes += len(data)
        if self._body_bytes > self._limit_bytes:
            self._abandon(BodyTooLarge(self._too_large()))
        else:
            self._body.append(data)

    def end(self, summary: Summary) -> None:
        """The empty message after a stream, or the body."""
        if self._over:
            return
        self._over = True
        self._work.claim.settle()
        self._send(b"" if self._streaming else b"".join(self._body), self._status_headers())

    def error(self, error: PunaError) -> None:
        """The error with its headers; a stream's reader then gets its empty message."""
        if self._over:
            return
        self._over = True
        self._work.claim.settle()
        self._send(error.body(), error_headers(error))
        if self._streaming or self._work.stream:
            self._send(b"")

    @property
    def untouched(self) -> bool:
        """Nothing was sent, or waits to be."""
        return not (self._over or self._said)

    def withdraw(self) -> None:
        """Somebody else will answer: say nothing from here on, and leave the claim as it is."""
        self._over = True
        self._body.clear()

    def _status_headers(self) -> Headers:
        return None if self._status < 400 else service_headers("the engine refused the request", self._status)

    @property
    def _limit_bytes(self) -> int:
        return self._bus.max_payload - HEADERS_ROOM_BYTES

    def _too_large(self) -> str:
        return f"the answer is over {self._limit_bytes} bytes (NATS max_payload); ask for less, or with stream: true"

    def _send(self, payload: bytes, headers: Headers = None) -> None:
        self._said = True
        if self._away or self._unsent:
            self._unsent.append((payload, headers))
            return
        now = self._clock()
        reply = ""
        if now >= self._probe_at:
            self._probe_at = now + PRESENCE_PROBE_S
            reply = self._gone_subject
        try:
            self._bus.publish(self._subject, payload, reply=reply, headers=headers)
        except BusUnavailable:
            self._unsent.append((payload, headers))
            self.lost()

    def _abandon(self, error: PunaError) -> None:
        if self._flow is not None and not self._over:
            self._flow.abandon(error)

    # -- the reader's side -------------------------------------------------------------------------------------------
    @property
    def away(self) -> bool:
        """Something waits for a connection, and for a reader."""
        return self._away

    def lost(self) -> None:
        """The connection went. A body that is not sent yet can wait; a stream has a hole now."""
        if not self._away:
            self._away, self._away_since = True, self._clock()
            if self._streaming and not self._over:
                self._unsent.clear()
                self._abandon(EngineFailed("the connection to NATS was lost in the middle of the answer"))

    def knock(self) -> None:
        """Send the first of what waits, with a reply subject that tells if nobody listens."""
        self._absent = False
        if self._unsent:
            payload, headers = self._unsent[0]
            try:
                self._bus.publish(self._subject, payload, reply=self._gone_subject, headers=headers)
            except BusUnavailable:
                self._absent = True

    def back(self, *, give_up: bool) -> None:
        """The knock arrived: send the rest."""
        if self._absent and not give_up:
            return
        unsent, self._unsent, self._away = self._unsent[1:], [], False
        if self._absent:
            self.gone()
            return
        for payload, headers in unsent:
            self._send(payload, headers)

    def gone(self) -> None:
        """Nobody listened: the work is for nothing, unless the reader is just about to come back."""
        if self._away:
            self._absent = True
            return
        self._abandon(Cancelled("the requester is gone"))
        self._over = True
        self._unsent.clear()

    def credit(self, epoch: int, next_seq: int) -> None:
        """Nobody credits a plain reply."""

    def tick(self, now: float) -> bool:
        """Keep the job; drop what nobody came back for."""
        self._work.claim.keep(now)
        if self._away and now - self._away_since > AWAY_LIMIT_S:
            self._unsent.clear()
            self._abandon(BusUnavailable("the connection to NATS did not come back in time"))
            return False
        return not self._over or bool(self._unsent)
