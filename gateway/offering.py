"""Requests that are offered to one node: the next turn of a conversation to the engine that holds it in its cache, and
others to an engine with much room. The effects around `Affinity` and `Room`.

The offer is an ordinary framed request to one node. Nobody there, a refusal, or no `accept` in time: the line takes the
request at once, under the next epoch, and whoever accepts the old one late hears `gone`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import Counter

from bus.connection import Bus
from gateway.affinity import Affinity, Home
from gateway.fleet import Fleet
from gateway.metrics import Metrics
from gateway.room import Room
from gateway.settings import GatewaySettings
from gateway.stream import Stream
from gateway.submission import Line
from schemas.errors import PunaError
from schemas.reply import End
from schemas.subjects import INTERACTIVE

log = logging.getLogger(__name__)

NOBODY: Final = "nobody_there"
TOO_SLOW: Final = "no_accept_in_time"


class Offering:
    """Makes offers and learns from answers. `fall_back(stream, why)` hears of an offer that came to nothing, `find` of
    a stream by its token."""

    def __init__(
        self,
        bus: Bus,
        settings: GatewaySettings,
        line: Line,
        fleet: Callable[[], Fleet],
        metrics: Metrics,
        find: Callable[[str], Stream | None],
        fall_back: Callable[[Stream, str], None],
    ) -> None:
        self._bus = bus
        self._on = settings.affinity
        self._direct = settings.direct
        self._wait_s = settings.affinity_wait_ms / 1000
        self._line = line
        self._fleet = fleet
        self._metrics = metrics
        self._find = find
        self._fall_back = fall_back
        self._affinity = Affinity()
        self._room = Room()
        self._asked: dict[str, Home] = {}
        """By stream: whom it was offered to, until it ends or was not taken."""
        self._loop = asyncio.get_running_loop()
        self._gone = bus.watch_gone(self._nobody)

    def __len__(self) -> int:
        return len(self._affinity)

    def offer(self, stream: Stream) -> bool:
        """Offer it to the engine that holds its conversation, else to one with much room. False: there is none that
        could be asked now. A suspect goes into the line: it is nobody's favourite."""
        if stream.deaths or not self._line.fits(stream.ticket.body):
            return False
        now = self._loop.time()
        home = self._holder(stream, now) or self._roomy(stream, now)
        if home is None or not self._publish(stream, home, now):
            return False
        stream.offer = self._asked[stream.token] = home
        self._room.begun(home)
        self._counter(home).labels("offered").inc()
        self._loop.call_later(self._wait_s, self._too_slow, stream, stream.epoch)
        return True

    def _holder(self, stream: Stream, now: float) -> Home | None:
        ticket, talk = stream.ticket, stream.ticket.conversation
        if not self._on or talk is None or not len(self) or not talk.answered:
            return None
        return self._affinity.find(talk.chain, ticket.model, self._fleet(), now)

    def _roomy(self, stream: Stream, now: float) -> Home | None:
        ticket = stream.ticket
        model = self._fleet().models.get(ticket.model)
        if not self._direct or ticket.lane != INTERACTIVE or model is None or model.state != "ready":
            return None
        return self._room.find(model, now)

    def _counter(self, home: Home) -> Counter:
        return self._metrics.affinity if home.key else self._metrics.direct

    def prepare(self, stream: Stream) -> None:
        """The request is on its way: time to hash what `learn` will need, and to let go of what was parsed."""
        if self._on and stream.ticket.conversation is not None:
            _ = stream.ticket.conversation.chain

    def taken(self, stream: Stream) -> None:
        """The node accepted it."""
        if stream.offer is not None:
            self._counter(stream.offer).labels("accepted").inc()

    def refused(self, stream: Stream, why: str) -> None:
        """The offer came to nothing."""
        home = stream.offer
        if home is None:
            return
        self._counter(home).labels("fell_back").inc()
        self.ended(stream)
        self._room.failed(home, self._loop.time(), silent=why in (NOBODY, TOO_SLOW))
        facts = {"event": "offer_fell_back", "request": stream.ticket.wire_id, "why": why}
        log.debug("offer_fell_back", extra=facts | {"node": home.node})

    def ended(self, stream: Stream) -> None:
        """It is over there."""
        home = self._asked.pop(stream.token, None)
        if home is not None:
            self._room.over(home)

    def learn(self, stream: Stream) -> None:
        """It was answered in full: the engine holds its conversation now."""
        talk, node, end = stream.ticket.conversation, stream.node, stream.end
        if not self._on or talk is None or node is None or end is None:
            return
        cached, prompt = tokens_of(end)
        if stream.offer is not None and stream.offer.key and cached is not None:
            self._correct(stream, stream.offer, cached)
        model, fleet = stream.ticket.model, self._fleet()
        self._affinity.learn(talk.chain, model, node, stream.engine, prompt, fleet, self._loop.time())

    def _correct(self, stream: Stream, home: Home, cached: int) -> None:
        self._metrics.affinity_tokens.inc(cached)
        if not self._affinity.check(home, cached):
            self._metrics.affinity.labels("stale").inc()
            facts = {"event": "affinity_stale", "request": stream.ticket.wire_id, "node": home.node}
            log.debug("affinity_stale", extra=facts | {"expected": home.prompt_tokens, "cached": cached})

    def _publish(self, stream: Stream, home: Home, now: float) -> bool:
        ticket = stream.ticket
        subject = self._bus.names.node_infer(home.node, ticket.op, ticket.model)
        head = self._line.head(stream, now, engine=home.engine)
        reply = self._gone.reply(f"{stream.token}_{stream.epoch}")
        try:
            self._bus.publish(subject, ticket.body, reply=reply, headers=head.headers(), now=True)
        except PunaError as error:
            log.info("offer_not_sent", extra={"event": "offer_not_sent", "request": ticket.wire_id, "why": error.code})
            return False
        return True

    def _nobody(self, token: str) -> None:
        """The server's 503: no such node listens."""
        name, _, epoch = token.rpartition("_")
        stream = self._find(name)
        if stream is not None and stream.offered and str(stream.epoch) == epoch:
            if stream.offer is not None and stream.offer.key:
                self._affinity.drop(stream.offer)
            self._fall_back(stream, NOBODY)

    def _too_slow(self, stream: Stream, epoch: int) -> None:
        if stream.offered and stream.epoch == epoch:
            self._fall_back(stream, TOO_SLOW)


def tokens_of(end: End) -> tuple[int | None, int]:
    """Prompt tokens that came out of the cache, if that is told, and those of the whole prompt; 0: not told."""
    timings, usage = end.timings or {}, end.usage or {}
    cached, fresh = _whole(timings, "cache_n"), _whole(timings, "prompt_n")
    if cached is not None and fresh is not None:
        return cached, cached + fresh
    return cached, _whole(usage, "prompt_tokens") or _whole(usage, "input_tokens") or 0


def _whole(found: Mapping[str, Any], name: str) -> int | None:
    value = found.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
