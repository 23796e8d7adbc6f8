"""The next turn of a conversation, offered to the engine that holds it in its cache: the effects around `Affinity`.

The offer is an ordinary framed request to one node. Nobody there, a refusal, or no `accept` in time: the line takes the
request at once, under the next epoch, and whoever accepts the old one late hears `gone`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from bus.connection import Bus
from gateway.affinity import Affinity, Home
from gateway.fleet import Fleet
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings
from gateway.stream import Stream
from gateway.submission import Line
from schemas.errors import PunaError
from schemas.reply import End

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
        self._wait_s = settings.affinity_wait_ms / 1000
        self._line = line
        self._fleet = fleet
        self._metrics = metrics
        self._find = find
        self._fall_back = fall_back
        self._affinity = Affinity()
        self._loop = asyncio.get_running_loop()
        self._gone = bus.watch_gone(self._nobody)

    def __len__(self) -> int:
        return len(self._affinity)

    def offer(self, stream: Stream) -> bool:
        """Offer it to the engine that holds its conversation. False: there is none that could be asked now. A suspect
        goes into the line: it is nobody's favourite."""
        ticket, talk = stream.ticket, stream.ticket.conversation
        if not self._on or talk is None or stream.deaths or not len(self) or not talk.answered:
            return False
        now = self._loop.time()
        home = self._affinity.find(talk.chain, ticket.model, self._fleet(), now)
        if home is None or not self._line.fits(ticket.body) or not self._publish(stream, home, now):
            return False
        stream.offer = home
        self._metrics.affinity.labels("offered").inc()
        self._loop.call_later(self._wait_s, self._too_slow, stream, stream.epoch)
        return True

    def prepare(self, stream: Stream) -> None:
        """The request is on its way: time to hash what `learn` will need, and to let go of what was parsed."""
        if self._on and stream.ticket.conversation is not None:
            _ = stream.ticket.conversation.chain

    def taken(self, stream: Stream) -> None:
        """The node accepted it."""
        self._metrics.affinity.labels("accepted").inc()

    def refused(self, stream: Stream, why: str) -> None:
        """The offer came to nothing."""
        self._metrics.affinity.labels("fell_back").inc()
        facts = {"event": "affinity_fell_back", "request": stream.ticket.wire_id, "why": why}
        log.debug("affinity_fell_back", extra=facts | {"node": stream.offer.node if stream.offer else None})

    def learn(self, stream: Stream) -> None:
        """It was answered in full: the engine holds its conversation now."""
        talk, node, end = stream.ticket.conversation, stream.node, stream.end
        if not self._on or talk is None or node is None or end is None:
            return
        cached, prompt = tokens_of(end)
        if stream.offer is not None and cached is not None:
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
            if stream.offer is not None:
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
