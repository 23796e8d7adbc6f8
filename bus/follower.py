"""A bucket as a mapping in memory that is right at every moment there is a session, and never half.

An ephemeral ordered consumer of our own feeds it: the newest message of each key, then every change. Whatever makes
it doubtful (a gap in the sequence, silence, a new session, the bucket deleted, a check that does not add up) has one
answer: a new consumer and a new snapshot, which replaces the old one whole. Until then the old one stays: a moment
without the server is no reason to believe that the fleet is gone.

A push consumer is only served while its deliver subject is listened to literally: a wildcard does not count.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from bus.entry import Entry
from bus.errors import JetStreamError, NoStream
from bus.job import parse_delivery
from bus.listeners import Listeners, new_inbox
from bus.message import Message
from bus.replica import Replica
from bus.subscription import Subscription
from bus.topology import STREAM_NOT_FOUND, stream_info
from bus.waits import backoff_s, happened
from bus.watched import WatchedTask
from schemas.errors import BusUnavailable, PunaError

if TYPE_CHECKING:
    from bus.kv import Bucket

log = logging.getLogger(__name__)

HEARTBEAT_S: Final = 1.0
SILENT_AFTER_S: Final = 2.5 * HEARTBEAT_S
CHECK_EVERY_S: Final = 30.0
UNUSED_S: Final = 5.0
"""The server drops our consumer when nobody has listened for this long."""
_NS: Final = 1_000_000_000
_STALLED: Final = "Nats-Consumer-Stalled"

Snapshot = Mapping[str, Entry]


class Follower:
    """Calls `on_change` with a new immutable mapping after each change; changes of one loop tick are one call.

    `repair` is awaited when the bucket does not exist; it should make the topology anew. `under`: only keys that begin
    with it and a dot; made for one look, as the checks of a long life are those of a whole bucket.
    """

    def __init__(
        self,
        bucket: Bucket,
        on_change: Callable[[Snapshot], None],
        *,
        repair: Callable[[], Awaitable[None]] | None = None,
        check_every_s: float = CHECK_EVERY_S,
        under: str = "",
    ) -> None:
        self._bucket = bucket
        self._keys = f"{under}.>" if under else ">"
        self._bus = bucket.bus
        self._on_change = on_change
        self._repair = repair
        self._check_every_s = check_every_s
        self._subscription: Subscription | None = None
        self._replica = Replica(bucket.prefix)
        self._following = False
        self._heard_at = 0.0
        self._checked_at = 0.0
        self._failures = 0
        self._flush_due = False
        self._kick = asyncio.Event()
        self._first = asyncio.Event()
        self._task = WatchedTask(self._keep, name=f"follow {bucket.name}")

    @property
    def whole(self) -> bool:
        """Whether the mapping that was handed over last is the bucket of this session."""
        return self._following and self._replica.whole

    async def start(self, *, timeout_s: float | None = None) -> None:
        """Until the first snapshot was handed over. Raises `BusUnavailable` after `timeout_s`; then it goes on
        trying all the same, until `stop`."""
        Listeners.of(self._bus).add(self)
        self._task.start()
        try:
            async with asyncio.timeout(timeout_s):
                await self._first.wait()
        except TimeoutError:
            text = f"bucket {self._bucket.name} was not read within {timeout_s:g} s"
            raise BusUnavailable(text, retry_after_s=1.0) from None

    async def stop(self) -> None:
        """No call after this one."""
        Listeners.of(self._bus).remove(self)
        self._leave()
        self._first.clear()
        await self._task.stop()

    # -- sessions ---------------------------------------------------------------------------------------------------
    def session_lost(self) -> None:
        """What was handed over stays valid as the last that is known."""
        self._leave()

    def session_began(self) -> None:
        """Read the bucket anew, at once."""
        self._leave()
        self._failures = 0
        self._kick.set()

    def _leave(self) -> None:
        self._following = False
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    # -- what the consumer sends: plain -----------------------------------------------------------------------------
    def _received(self, message: Message) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        was_whole = self._replica.whole
        delivery = parse_delivery(message.reply)
        doubt = self._told(message) if delivery is None else self._replica.take(message, delivery)
        if doubt is not None:
            self._doubt(doubt)
        elif self._replica.whole and not was_whole:
            self._complete()
        elif was_whole and delivery is not None:
            self._flush_soon()

    def _told(self, message: Message) -> str | None:
        """A heartbeat, or the question of flow control, which wants an empty answer before more is sent."""
        headers = message.headers or {}
        question = message.reply or headers.get(_STALLED, "")
        if question:
            try:
                self._bus.publish(question)
            except BusUnavailable as error:
                return error.message
        return self._replica.heartbeat(headers)

    def _complete(self) -> None:
        self._failures = 0
        self._flush()
        self._first.set()

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush_if_due)

    def _flush_if_due(self) -> None:
        if self._flush_due and self.whole:
            self._flush()

    def _flush(self) -> None:
        self._flush_due = False
        try:
            self._on_change(MappingProxyType(dict(self._replica.entries)))
        except Exception:
            log.exception("on_change failed", extra={"event": "bus.handler_failed", "subject": self._bucket.name})

    def _doubt(self, reason: str) -> None:
        self._leave()
        self._note(reason)
        self._kick.set()

    def _note(self, reason: str) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th…: an outage is not a flood of lines
            detail = {"event": "bus.follow_again", "bucket": self._bucket.name, "reason": reason}
            log.info("following anew", extra=detail | {"failures": self._failures})

    # -- the keeper: the only part that waits -----------------------------------------------------------------------
    async def _keep(self) -> None:
        while True:
            self._kick.clear()
            if self._bus.connected and not self._following:
                await self._follow()
            await self._rest()

    async def _follow(self) -> None:
        if self._failures > 1:
            await happened(self._kick, backoff_s(self._failures - 1))
        session = self._bus.session
        try:
            self._begin()
            info = await self._create_consumer(self._subscription)
        except PunaError as error:
            if self._bus.session == session:
                self._doubt(error.message)
                await self._mend(error)
        else:
            if self._following and info["num_pending"] == 0 and not self._replica.whole:
                self._replica.whole = True
                self._complete()

    def _begin(self) -> None:
        """A new inbox, so that nothing of an earlier consumer is taken for the new one's."""
        self._leave()
        self._replica, self._flush_due = Replica(self._bucket.prefix), False
        self._heard_at = self._checked_at = asyncio.get_running_loop().time()
        self._following = True
        inbox = new_inbox(self._bus)
        self._subscription = self._bus.subscribe(inbox, self._received)

    async def _create_consumer(self, subscription: Subscription | None) -> dict[str, Any]:
        stream, name, subjects = self._bucket.stream, f"puna-{secrets.token_hex(8)}", self._bucket.prefix + self._keys
        inbox = subscription.subject if subscription is not None else ""
        body = {"stream_name": stream, "config": _consumer(name, inbox, subjects)}
        try:
            return await self._bus.js_api(f"CONSUMER.CREATE.{stream}.{name}.{subjects}", body)
        except JetStreamError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise NoStream(f"bucket {self._bucket.name} does not exist") from error
            raise

    async def _mend(self, error: PunaError) -> None:
        if self._repair is None or not isinstance(error, NoStream):
            return
        try:
            await self._repair()
        except PunaError as again:
            self._note(again.message)

    async def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time() + HEARTBEAT_S / 2
        if await happened(self._kick, HEARTBEAT_S / 2):
            return
        now = loop.time()
        if now - due_at > HEARTBEAT_S / 4:  # time in which this process stood still is nobody's silence
            self._heard_at += now - due_at
        if self._following and now > self._heard_at + SILENT_AFTER_S:
            self._doubt(f"no heartbeat for {SILENT_AFTER_S:g} s")
        elif self.whole:
            await self._check(now)

    async def _check(self, now: float) -> None:
        """Things that no message tells: see `Replica.compare`."""
        if now < self._checked_at + self._check_every_s:
            return
        self._checked_at, replica = now, self._replica
        try:
            info = await stream_info(self._bus, self._bucket.stream)
        except PunaError as error:  # heartbeats and sessions tell about that; the next check comes
            log.debug("check failed", extra={"event": "bus.check_failed", "reason": error.message})
            return
        doubt = replica.compare(info["state"]) if info is not None else "the bucket is gone"
        if doubt is not None and self.whole and replica is self._replica:
            self._doubt(doubt)


def _consumer(name: str, inbox: str, subjects: str) -> dict[str, Any]:
    return {
        "name": name,
        "deliver_subject": inbox,
        "deliver_policy": "last_per_subject",
        "filter_subject": subjects,
        "ack_policy": "none",
        "max_deliver": 1,
        "flow_control": True,
        "idle_heartbeat": int(HEARTBEAT_S * _NS),
        "inactive_threshold": int(UNUSED_S * _NS),
        "mem_storage": True,
        "num_replicas": 1,
    }
