"""Following an engine's log over NATS: batches of lines to one subject, until nobody listens there.

Every message is JSON with `lines`, sent at least once a second so that a quiet log and a node that is gone are told
apart; an empty message is the end: the engine is no more, or the time is over. Each carries a reply subject, so the
server tells when nobody listens any more.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Final

import orjson

from bus.connection import Bus
from bus.watched import Tasks
from schemas.errors import BusUnavailable, PunaError, Unavailable
from worker.enginelog import EngineLog

log = logging.getLogger(__name__)

FOLLOWERS_LIMIT: Final = 32
TIME_LIMIT_S: Final = 600.0
ALIVE_S: Final = 1.0
PENDING_LIMIT_LINES: Final = 2000
"""Lines that wait to be sent to one follower; of more the oldest are left out, and counted."""


class Following:
    """Owner of this node's followers."""

    def __init__(self, bus: Bus, tasks: Tasks, *, limit_bytes: Callable[[], int], alive_s: float = ALIVE_S) -> None:
        self._bus = bus
        self._tasks = tasks
        self._limit_bytes = limit_bytes
        self._alive_s = alive_s
        self._numbers = itertools.count()
        self._followers: dict[str, _Follower] = {}
        self._watch = bus.watch_gone(self._gone)

    def begin(self, subject: str, source: EngineLog, here: Callable[[], bool]) -> None:
        """Send what the log gets from now on to `subject`, while the engine is `here`. Raises `Unavailable`."""
        if len(self._followers) >= FOLLOWERS_LIMIT:
            raise Unavailable(f"{FOLLOWERS_LIMIT} logs of this node are being followed, its limit", retry_after_s=5.0)
        token = f"f{next(self._numbers)}"
        follower = self._followers[token] = _Follower(source)
        self._tasks.start(f"follow {token}", self._follow(token, follower, subject, here))

    def _gone(self, token: str) -> None:
        if (follower := self._followers.get(token)) is not None:
            follower.gone = True
            follower.news.set()

    async def _follow(self, token: str, follower: _Follower, subject: str, here: Callable[[], bool]) -> None:
        ends_at = asyncio.get_running_loop().time() + TIME_LIMIT_S
        try:
            while here() and not follower.gone and asyncio.get_running_loop().time() < ends_at:
                await follower.wait(self._alive_s)
                for batch in follower.batches(self._limit_bytes()):
                    self._bus.publish(subject, orjson.dumps(batch), reply=self._watch.reply(token))
            if not follower.gone:
                self._bus.publish(subject, b"")
        except BusUnavailable as error:
            log.info("follow_ended", extra={"event": "follow_ended", "reason": error.code})
        except PunaError as error:
            log.warning("follow_ended", extra={"event": "follow_ended", "reason": error.message})
        finally:
            follower.close()
            del self._followers[token]


class _Follower:
    """What one of them has not been sent yet."""

    def __init__(self, source: EngineLog) -> None:
        self.gone = False
        self.news = asyncio.Event()
        self._lines: list[str] = []
        self._left_out = 0
        self._following = source.follow(self._heard)

    def close(self) -> None:
        """Hear no more."""
        self._following.close()

    async def wait(self, most_s: float) -> None:
        """Until there is something to send, or it is time to say that there is not."""
        try:
            async with asyncio.timeout(most_s):
                await self.news.wait()
        except TimeoutError:
            return

    def batches(self, limit_bytes: int) -> list[dict[str, object]]:
        """All that there is, in pieces of at most so many bytes, more or less; one empty piece if there is nothing."""
        lines, self._lines = self._lines, []
        left_out, self._left_out = self._left_out, 0
        self.news.clear()
        out: list[dict[str, object]] = []
        for piece in _pieces(lines, limit_bytes):
            out.append({"lines": piece, "left_out": left_out})
            left_out = 0
        return out or [{"lines": [], "left_out": left_out}]

    def _heard(self, lines: Sequence[str]) -> None:
        self._lines.extend(lines)
        over = len(self._lines) - PENDING_LIMIT_LINES
        if over > 0:
            del self._lines[:over]
            self._left_out += over
        self.news.set()


def _pieces(lines: Sequence[str], limit_bytes: int) -> list[list[str]]:
    pieces: list[list[str]] = []
    room = 0
    for line in lines:
        size = len(orjson.dumps(line)) + 1
        if size > room or not pieces:
            pieces.append([])
            room = limit_bytes
        pieces[-1].append(line)
        room -= size
    return pieces
