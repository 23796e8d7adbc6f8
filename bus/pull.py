"""Work for free slots: exactly as many requests for one message stand at the server as there is room for.

Rules that the server sets and this file lives by:
- A delivered message bears its own subject, not the inbox it was sent to. Only the subscription tells which pull it
  answers, so each pull that is outstanding at the same time has an inbox of its own, used again for the next one.
- A pull ends with one message: the work, or a status. 408 and 404 are ordinary; 409 and 503 mean that the consumer
  has to be looked at first. No sign of life (a heartbeat is due every `PULL_HEARTBEAT_S`) means the same.
- A pull cannot be taken back: closing its inbox would lose what is on its way until `ack_wait`. What is not wanted
  any more (fewer slots, another priority, thought dead) runs out by itself, and what it still brings is handed over.
- A new session has new inboxes, so nothing of the old one is answered twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import orjson

from bus.connection import Bus
from bus.errors import NoStream
from bus.job import Delivery, Job, job_from, parse_delivery
from bus.listeners import Listeners, api_subject
from bus.message import Message
from bus.outstanding import MISSED_AFTER_S, PULL_EXPIRES_S, PULL_HEARTBEAT_S, Outstanding, Pull
from bus.topology import ensure_consumer
from bus.waits import backoff_s, happened
from bus.watched import WatchedTask
from schemas.errors import BusUnavailable, PunaError
from schemas.topology import ConsumerSpec

log = logging.getLogger(__name__)

PROVEN_AFTER_S: Final = 1.0
"""A pull that ends without work sooner than this has failed, whatever the server calls it: asking again at once,
for ever, would be a spin."""
LOWEST_PRIORITY: Final = 9
_NS: Final = 1_000_000_000
_HEARTBEAT: Final = "100"
_ORDINARY: Final = ("404", "408")

Deliver = Callable[[Job], None]


class WorkPull:
    """Keeps pulls of batch 1 outstanding on one consumer and hands what they bring to `deliver`, a plain function.

    `repair` is awaited when the consumer's stream itself is missing; it should make the topology anew. With `brief_s`
    each pull runs out after that time (at least two heartbeats), and while one stands no other is asked, even if the
    priority has changed: for pulls whose reason may pass.
    """

    def __init__(
        self,
        bus: Bus,
        spec: ConsumerSpec,
        deliver: Deliver,
        *,
        name: str,
        repair: Callable[[], Awaitable[None]] | None = None,
        brief_s: float | None = None,
    ) -> None:
        self._bus = bus
        self._spec = spec
        self._deliver = deliver
        self._repair = repair
        self._brief_s = brief_s
        self._name = name
        self._want = 0
        self._priority = 0
        self._body = b""
        self._running = False
        self._standing = False
        self._round = 0
        self._identity = ("", 0)
        self._failures = 0
        self._pulls = Outstanding(bus, self._received)
        self._kick = asyncio.Event()
        self._next_subject = api_subject(bus, f"CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}")
        self._task = WatchedTask(self._keep, name=f"pull {name}")

    @property
    def outstanding(self) -> int:
        """Pulls that stand at the server now, as far as is known, those not wanted any more among them."""
        return len(self._pulls)

    @property
    def standing(self) -> bool:
        """Whether the consumer was found or made in this session, and pulls are being asked."""
        return self._standing

    def want(self, count: int, *, priority: int = 0) -> None:
        """Keep `count` pulls outstanding, from now on at `priority` (0 is served first, 9 last)."""
        if count < 0 or not 0 <= priority <= LOWEST_PRIORITY:
            raise ValueError(f"want({count}, priority={priority}): a count from 0 and a priority of 0 to 9")
        self._want = count
        if priority != self._priority or not self._body:
            self._priority = priority
            self._body = _pull_body(self._spec, priority, self._brief_s or PULL_EXPIRES_S)
        self._fill()

    async def start(self) -> None:
        """Begin to pull as soon as there is a session. Does not wait for one."""
        self._running = True
        Listeners.of(self._bus).add(self)
        self._task.start()

    async def stop(self) -> None:
        """Ask for nothing more. Jobs that were handed over can still be acknowledged."""
        self._running = False
        Listeners.of(self._bus).remove(self)
        self._forget()
        await self._task.stop()

    # -- sessions ---------------------------------------------------------------------------------------------------
    def session_lost(self) -> None:
        """The server forgot our pulls with the connection."""
        self._forget()

    def session_began(self) -> None:
        """Ask for everything anew, at once."""
        self._forget()
        self._failures = 0
        self._kick.set()

    def _forget(self) -> None:
        self._standing = False
        self._pulls.forget()

    # -- asking: plain ----------------------------------------------------------------------------------------------
    def _fill(self) -> None:
        if not (self._running and self._standing and self._bus.connected):
            return
        for _ in range(self._want - self._standing_pulls()):
            if not self._ask():
                return

    def _standing_pulls(self) -> int:
        if self._brief_s is None:
            return self._pulls.count(self._priority)
        return sum(map(self._pulls.count, range(LOWEST_PRIORITY + 1)))

    def _ask(self) -> bool:
        pull = self._pulls.idle()
        try:
            self._bus.publish(self._next_subject, self._body, reply=pull.inbox, lazy=True)
        except BusUnavailable:  # asked again by the new session, or by the next look around
            self._pulls.ended(pull)
            return False
        now = asyncio.get_running_loop().time()
        self._pulls.asked(pull, priority=self._priority, round_=self._round, now=now)
        return True

    # -- answers: plain ---------------------------------------------------------------------------------------------
    def _received(self, pull: Pull, message: Message) -> None:
        delivery = parse_delivery(message.reply)
        if delivery is not None:
            self._work(pull, message, delivery)
        elif message.status == _HEARTBEAT:
            pull.heard_at, pull.missed = asyncio.get_running_loop().time(), False
            self._failures = 0
        elif pull in self._pulls:
            self._refused(pull, message)

    def _work(self, pull: Pull, message: Message, delivery: Delivery) -> None:
        self._pulls.ended(pull)
        self._failures = 0
        valid = partial(self._is_current, self._identity)
        job = job_from(message, delivery, valid=valid, acknowledge=self._bus.publish)
        try:
            self._deliver(job)
        finally:
            self._fill()

    def _is_current(self, identity: tuple[str, int]) -> bool:
        consumer, session = self._identity
        return consumer == identity[0] and session == self._bus.session

    def _refused(self, pull: Pull, message: Message) -> None:
        lived_s = asyncio.get_running_loop().time() - pull.asked_at
        self._pulls.ended(pull)
        if message.status in _ORDINARY and lived_s >= PROVEN_AFTER_S:
            self._failures = 0
            self._fill()
        else:
            description = (message.headers or {}).get("Description", "")
            self._failed(pull.round, f"{message.status} {description}".strip())

    def _failed(self, of_round: int, reason: str) -> None:
        if not self._standing or of_round != self._round:
            return  # the others of that round say the same; it is being mended
        self._standing = False
        self._note_failure(reason)
        self._kick.set()

    def _note_failure(self, reason: str) -> None:
        self._failures += 1
        if self._failures & (self._failures - 1) == 0:  # the 1st, 2nd, 4th, 8th…: an outage is not a flood of lines
            level = logging.INFO if self._failures == 1 else logging.WARNING
            detail = {"event": "bus.pull_failed", "pull": self._name, "reason": reason, "failures": self._failures}
            log.log(level, "pull failed", extra=detail)

    # -- the keeper: the only part that waits -----------------------------------------------------------------------
    async def _keep(self) -> None:
        while True:
            self._kick.clear()
            if self._bus.connected and not self._standing:
                await self._stand()
            self._fill()
            await self._rest()

    async def _stand(self) -> None:
        if self._failures > 1:
            await happened(self._kick, backoff_s(self._failures - 1))
        session = self._bus.session
        try:
            created = await ensure_consumer(self._bus, self._spec)
        except NoStream as error:
            await self._mend(error)
        except PunaError as error:
            self._note_failure(error.message)
            self._kick.set()
        else:
            if self._bus.connected and self._bus.session == session:
                self._identity, self._standing, self._round = (created, session), True, self._round + 1

    async def _mend(self, error: NoStream) -> None:
        self._note_failure(error.message)
        self._kick.set()
        if self._repair is not None:
            try:
                await self._repair()
            except PunaError as again:
                self._note_failure(again.message)

    async def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        due_at = loop.time() + PULL_HEARTBEAT_S / 2
        if await happened(self._kick, PULL_HEARTBEAT_S / 2):
            return
        late_s = loop.time() - due_at
        for pull in self._pulls.silent(loop.time(), late_s if late_s > PULL_HEARTBEAT_S / 4 else 0.0):
            self._failed(pull.round, f"no heartbeat for {MISSED_AFTER_S:g} s")


def _pull_body(spec: ConsumerSpec, priority: int, expires_s: float) -> bytes:
    body: dict[str, object] = {
        "batch": 1,
        "expires": int(expires_s * _NS),
        "idle_heartbeat": int(PULL_HEARTBEAT_S * _NS),
    }
    if spec.priority_group:
        body |= {"group": spec.priority_group, "priority": priority}
    return orjson.dumps(body)
