"""All replies that are under way on NATS: their ticks, their credit, and their return after a broken connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final

from bus.connection import Bus, Message
from bus.watched import Tasks
from schemas.errors import BusUnavailable
from schemas.frame import BadFrame
from schemas.reply import decode_credit
from worker.framed import FramedReply
from worker.native import NativeReply
from worker.reply import BusReply
from worker.work import Work

log = logging.getLogger(__name__)

RETURN_GRACE_S: Final = 3.0
"""How long readers have to come back after a new session."""
KNOCK_EVERY_S: Final = 0.05


class Replies:
    """Owner of the replies. One subject for gone readers and one for credit serve them all."""

    def __init__(self, bus: Bus, node: str, tasks: Tasks, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._tasks = tasks
        self._clock = clock
        self._replies: dict[str, list[BusReply]] = {}
        self._watch = bus.watch_gone(self._gone)
        self._credits = bus.subscribe(bus.names.node(node, "credit"), self._credit)
        bus.on_lost(self._lost)
        bus.on_session(self._session)

    def __iter__(self) -> Iterator[BusReply]:
        return (reply for each in tuple(self._replies.values()) for reply in tuple(each))

    def __len__(self) -> int:
        return sum(len(each) for each in self._replies.values())

    def make(self, work: Work, accept: bytes) -> BusReply:
        """The reply of the kind that the request asks for; `accept` as `accept_of` gives it."""
        reply: BusReply
        if work.head.framed:
            reply = FramedReply(self._bus, self._watch, work, accept, self._clock)
        else:
            reply = NativeReply(self._bus, self._watch, work, self._clock)
        self._replies.setdefault(reply.token, []).append(reply)
        return reply

    def tick(self, now: float) -> None:
        """Some time has passed: let each reply do what is due, and forget those that are done."""
        for reply in self:
            if not reply.tick(now):
                self._forget(reply)

    async def drained(self) -> None:
        """Until everything that was sent has reached the server. A lost connection ends the wait."""
        try:
            await self._bus.flush(2.0)
        except BusUnavailable as error:
            log.warning("replies_not_flushed", extra={"event": "replies_not_flushed", "reason": error.message})

    def _forget(self, reply: BusReply) -> None:
        same = self._replies.get(reply.token, [])
        if reply in same:
            same.remove(reply)
        if not same:
            self._replies.pop(reply.token, None)

    def _gone(self, token: str) -> None:
        for reply in tuple(self._replies.get(token, ())):
            reply.gone()

    def _credit(self, message: Message) -> None:
        try:
            lines = decode_credit(message.payload)
        except BadFrame as error:
            log.warning("bad_credit", extra={"event": "bad_credit", "reason": str(error)})
            return
        for token, epoch, next_seq in lines:
            for reply in tuple(self._replies.get(token, ())):
                reply.credit(epoch, next_seq)

    def _lost(self) -> None:
        for reply in self:
            reply.lost()

    async def _session(self) -> None:
        if any(reply.away for reply in self):
            self._tasks.start("readers return", self._return(self._bus.session))

    async def _return(self, session: int) -> None:
        """Knock at every reader until each is back, or its time is over."""
        give_up_at = self._clock() + RETURN_GRACE_S
        while self._bus.session == session and (away := [reply for reply in self if reply.away]):
            for reply in away:
                reply.knock()
            try:
                await self._bus.flush(RETURN_GRACE_S)
            except BusUnavailable:
                return  # the next session begins anew
            for reply in away:
                reply.back(give_up=self._clock() >= give_up_at)
            await asyncio.sleep(KNOCK_EVERY_S if any(reply.away for reply in away) else 0)
