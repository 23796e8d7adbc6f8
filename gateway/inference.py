"""All requests in flight: into the line, frames back to their streams, and what happens when something goes away.

Owns the streams. Frames come on one wildcard subject; the last token of a frame's subject is the stream.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Final

from bus.connection import Bus
from bus.watched import Tasks
from gateway import credit, router, trace
from gateway.admission import Ticket, retry_after_s
from gateway.answer import Answer
from gateway.demand import Demands, Supply, Waiting
from gateway.fleet import Fleet
from gateway.metrics import Metrics
from gateway.offering import TOO_SLOW, Offering
from gateway.poison import Poison
from gateway.settings import GatewaySettings
from gateway.stream import Stream
from gateway.submission import Line
from schemas.demand import Demand
from schemas.errors import BusUnavailable, LineFull, PunaError, RateLimited, Unavailable
from schemas.frame import ACCEPT, GONE, BadFrame
from schemas.reply import Cancel, encode_credit
from web import Exchange, Header

log = logging.getLogger(__name__)

TICK_S: Final = 0.25
_ACCEPT_HEAD: Final = ACCEPT + b" "


class Inference:
    """The gateway's requests. `fleet` gives the view of the moment, `disks` what is known of a model's files."""

    def __init__(
        self,
        bus: Bus,
        settings: GatewaySettings,
        fleet: Callable[[], Fleet],
        metrics: Metrics,
        disks: router.Disks = router.no_disks,
    ) -> None:
        self.gateway = secrets.token_hex(6)
        """This process's own name in the subjects of its replies."""
        self.tries = settings.tries
        self.answer_bytes = settings.answer_bytes
        self.keep_alive_s = settings.keep_alive_s
        self._bus = bus
        self._settings = settings
        self._fleet = fleet
        self._disks = disks
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, Stream] = {}
        self._count = 0
        self._cut = len(bus.names.reply(self.gateway, ""))
        self._tasks = Tasks()
        self._line = Line(bus, settings, self.gateway, self._tasks, self._refused)
        self._offering = Offering(bus, settings, self._line, fleet, metrics, self._streams.get, self.fall_back)
        self._demands = Demands(settings.spill_after_s, self._demand)
        self._poison = Poison(bus, self._tasks)
        self._credit_due = 0.0
        self._ticker: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Listen for frames and begin to tick."""
        self._bus.subscribe_raw(self._bus.names.replies(self.gateway), self._frame)
        self._bus.on_session(self._session)
        self._poison.start()
        self._metrics.watch("suspects", "Requests that are known to have killed engines.", lambda: len(self._poison))
        self._metrics.watch("affinity_entries", "Conversations whose engine is known.", lambda: len(self._offering))
        self._ticker = self._loop.call_later(TICK_S, self._tick)

    async def stop(self) -> None:
        """End what still runs, honestly. The server's grace is over by now."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for stream in tuple(self._streams.values()):
            self.withdraw(stream)
            stream.fail(Unavailable("this gateway is shutting down", retry_after_s=1))
        await self._poison.stop()
        await self._tasks.stop()

    @property
    def active(self) -> int:
        """Requests in flight."""
        return len(self._streams)

    def waiting(self) -> dict[tuple[str, str], int]:
        """(model, lane) → requests of this gateway that no worker has."""
        counts: dict[tuple[str, str], int] = {}
        for stream in self._streams.values():
            if stream.waiting:
                place = (stream.ticket.model, stream.ticket.lane)
                counts[place] = counts.get(place, 0) + 1
        return counts

    # -- a request comes ---------------------------------------------------------------------------------------------
    def begin(self, ticket: Ticket, exchange: Exchange, headers: list[Header]) -> None:
        """Take a request in. Raises what a refusal at the door is: nothing was sent anywhere yet."""
        if len(self._streams) >= self._settings.requests_limit:
            limit = self._settings.requests_limit
            raise RateLimited(f"this gateway holds {limit} requests, its limit; try again soon", retry_after_s=1)
        fleet, model = self._fleet(), ticket.model
        route = router.decide(model, ticket.lane, fleet, self._disks)
        if isinstance(route, router.Refuse):
            raise route.error
        deaths = self._poison.deaths(ticket)
        self._count += 1
        token, answer = f"{self.gateway}-{self._count:x}", Answer(exchange, ticket.op, headers)
        stream = self._streams[token] = Stream(ticket, token, answer, self, deaths=deaths)
        stream.held = route.loading if isinstance(route, router.Hold) else None
        exchange.on_closed = stream.left
        if not self._offering.offer(stream):
            self._line.enter(stream)
            if isinstance(route, router.Hold):
                self._demands.arrived(model, Supply.of(fleet.models.get(model)), ticket.arrived_at)
        self._offering.prepare(stream)

    def _refused(self, stream: Stream, error: PunaError) -> None:
        if isinstance(error, LineFull):
            known = self._fleet().models.get(stream.ticket.model)
            wait_s = retry_after_s(known, self._settings.nats.queue_limit_requests)
            error = LineFull(error.message, retry_after_s=wait_s)
        stream.fail(error)

    def _demand(self, model: str, demand: Demand) -> bool:
        if not self._send(self._bus.names.demand(model), demand.encode()):
            return False
        self._metrics.demands.labels(demand.kind).inc()
        facts = {"event": "demand", "model": model, "kind": demand.kind, "waiting": demand.waiting}
        log.info("demand", extra=facts | {"oldest_s": round(demand.oldest_s, 1)})
        return True

    # -- frames ------------------------------------------------------------------------------------------------------
    def _frame(self, subject: str, reply: str, payload: bytes) -> None:
        stream = self._streams.get(subject[self._cut :])
        if stream is None:
            if reply and payload.startswith(_ACCEPT_HEAD):
                self.reply(reply, GONE)
            return
        try:
            stream.frame(payload, reply)
        except BadFrame as error:
            self._metrics.bad_frames.inc()
            log.warning("bad_frame", extra={"event": "bad_frame", "request": stream.ticket.wire_id, "why": str(error)})

    # -- what a stream asks ------------------------------------------------------------------------------------------
    def reply(self, subject: str, word: bytes) -> bool:
        """Answer an `accept`."""
        return bool(subject) and self._send(subject, word)

    def withdraw(self, stream: Stream) -> None:
        """Take the present epoch back. A message whose ack is still on its way is deleted when it comes."""
        node = stream.offer.node if stream.offer is not None and stream.waiting else stream.node
        if node is not None:
            order = Cancel(request=stream.ticket.wire_id, epoch=stream.epoch)
            self._send(self._bus.names.node(node, "cancel"), order.encode())
        elif stream.line_sequence is not None:
            sequence, stream.line_sequence = stream.line_sequence, None
            self._line.leave(sequence)

    def again(self, stream: Stream, why: PunaError) -> None:
        """The stream's next epoch goes into the line."""
        self._metrics.retries.labels(why.code).inc()
        facts = {"event": "request_tried_again", "request": stream.ticket.wire_id, "epoch": stream.epoch}
        log.info("request_tried_again", extra=facts | {"why": why.code})
        self._line.enter(stream)

    def taken(self, stream: Stream) -> None:
        """Its conversation's engine answers it."""
        self._offering.taken(stream)

    def fall_back(self, stream: Stream, why: str) -> None:
        """An offer came to nothing: nobody waits for it a moment longer."""
        self._offering.refused(stream, why)
        if why == TOO_SLOW:
            self.withdraw(stream)
        stream.next_epoch()
        self._line.enter(stream)

    def engine_died(self, stream: Stream, why: str) -> None:
        """All gateways shall know."""
        self._metrics.deaths.inc()
        self._poison.died(stream.ticket, stream.deaths, node=stream.node, why=why)

    def credit(self, stream: Stream) -> None:
        """Tell the node at once what it need not keep any longer."""
        if stream.node is not None:
            line = stream.credit(self._settings.slow_client_bytes)
            self._send(self._bus.names.node(stream.node, "credit"), encode_credit([line]))

    def ended(self, stream: Stream) -> None:
        """Forget the stream; write its one log line."""
        self._streams.pop(stream.token, None)
        self._offering.ended(stream)
        stream.answer.forget()
        if stream.in_store:
            self._line.clear(stream.ticket.wire_id)
        if stream.outcome == "ok":
            self._offering.learn(stream)
            if stream.deaths:
                self._poison.survived(stream.ticket)
        self._metrics.ended(stream)
        log.info("request", extra={"event": "request"} | trace.facts(stream, self._loop.time()))

    def clock(self) -> float:
        """The loop's time."""
        return self._loop.time()

    def _send(self, subject: str, payload: bytes) -> bool:
        try:
            self._bus.publish(subject, payload)
        except BusUnavailable:
            # A lost accept is repeated, a cancel is made good by credit that stays away: counted, not retried.
            self._metrics.unsent.inc()
            return False
        return True

    # -- time and sessions -------------------------------------------------------------------------------------------
    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now, connected = self._loop.time(), self._bus.connected
        for stream in tuple(self._streams.values()):
            stream.tick(now, TICK_S, connected)
        self._line.tick(now)
        if now >= self._credit_due and connected:
            self._credit_due = now + credit.CREDIT_EVERY_S
            self._give_credit()
            self._look_after_waiting(now)

    def _give_credit(self) -> None:
        for node, message in credit.messages(self._streams.values(), self._settings.slow_client_bytes):
            self._send(self._bus.names.node(node, "credit"), message)

    def _look_after_waiting(self, now: float) -> None:
        fleet, waiting = self._fleet(), dict[str, Waiting]()
        for stream in tuple(self._streams.values()):
            if not stream.waiting:
                continue
            model, waited_s = stream.ticket.model, now - stream.ticket.arrived_at
            stream.held = router.held(model, fleet, self._disks)
            error = router.hopeless(model, fleet, self._disks)
            if error is not None:
                self.withdraw(stream)
                stream.fail(error)
                continue
            so_far = waiting.get(model, Waiting(0, 0.0))
            waiting[model] = Waiting(so_far.count + 1, max(so_far.oldest_s, waited_s))
        self._demands.tick(waiting, lambda model: Supply.of(fleet.models.get(model)), now)

    async def _session(self) -> None:
        """A new session: workers may send again from the last credit, and the line may have lost what waited."""
        for stream in self._streams.values():
            stream.heard_anew()
        self._give_credit()
        waiting = [stream for stream in self._streams.values() if stream.waiting]
        for stream in waiting:
            if stream.offered:
                self.fall_back(stream, "session_lost")
            else:
                self._line.enter(stream)
        self._metrics.republished.inc(len(waiting))
