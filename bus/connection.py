"""The bus: connected to NATS for as long as the process lives.

Nothing is kept for later while there is no connection: a caller is told at once and decides. Everything here but
`request` and its kin is a plain call, and handlers are called from the socket's own callback.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from bus.errors import BusDenied, BusSlow
from bus.jetstream import JetStream, PubAck, acknowledged, publish_headers
from bus.link import Link
from bus.message import Message, publish_command
from bus.replies import Callbacks, GoneWatch, Replies
from bus.session import Sessions
from bus.settings import NatsSettings
from bus.subscription import MessageHandler, RawHandler, Subscription, Table, message_handlers, raw_handlers
from bus.wire import Traffic
from schemas.errors import BusUnavailable, DeadlineExceeded, PunaError
from schemas.subjects import Names

__all__ = ["Bus", "GoneWatch", "Message", "PubAck", "Subscription", "Traffic"]

log = logging.getLogger(__name__)

CLOSE_FLUSH_S: Final = 1.0
FAULT_LOG_S: Final = 1.0
"""At most one log line in this time about handlers that raise: they may do so at each of many thousand messages."""
_DENIALS_KEPT: Final = 100
_DENIED: Final = re.compile(
    r'permissions violation for (publish|subscription) to "([^"]*)"(?: using queue "([^"]*)")?', re.IGNORECASE
)


class Bus:
    """One process's connection to NATS. Make it with `Bus.connect`."""

    def __init__(self, settings: NatsSettings, *, name: str, join_s: float = 0.0) -> None:
        """`join_s`: after a write to the server, what follows within this time is joined into one write, as long as so
        much is sent that this pays."""
        self.settings: Final = settings
        self.names: Final = Names(settings.prefix)
        self.name: Final = name
        self.faults = 0
        """Exceptions that handlers let out, since the start."""
        self.denials: dict[str, str] = {}
        """Subjects that the server refused in this session, and its words."""
        self._inbox = f"{settings.inbox_prefix}.{secrets.token_hex(8)}"
        self._watches = 0
        self._fault_logged_s = -FAULT_LOG_S
        self._table = Table(self._send_if_up)
        self._replies = Replies(f"{self._inbox}.")
        self._sessions = Sessions(name)
        self._lost_callbacks: list[Callable[[], None]] = []
        self._jetstream = JetStream(self)
        self._link = Link(
            settings,
            self._table,
            name=name,
            join_s=join_s,
            on_up=self._session_up,
            on_down=self._session_down,
            on_error=self._server_error,
            on_fault=self._fault,
        )
        self._answers = self._table.add(self._replies.wildcard, None, self._replies.plain, self._replies.headed)

    # -- life -------------------------------------------------------------------------------------------------------
    @classmethod
    async def connect(cls, settings: NatsSettings, *, name: str, timeout_s: float = 10.0, join_s: float = 0.0) -> Bus:
        """A connected bus. Raises `BusUnavailable` after `timeout_s`, at once if credentials or TLS are refused."""
        bus = cls(settings, name=name, join_s=join_s)
        bus._link.start()
        try:
            await bus._link.first(timeout_s)
        except BaseException:
            await bus.close()
            raise
        return bus

    @property
    def connected(self) -> bool:
        """Connected, subscriptions replayed, and the server has answered since."""
        return self._link.connected

    @property
    def session(self) -> int:
        """Counts connections, from 1."""
        return self._link.session

    @property
    def max_payload(self) -> int:
        """Most bytes of headers and payload that the server takes in one message."""
        return self._link.max_payload

    @property
    def server_version(self) -> str:
        """Of the server that we are, or were last, connected to."""
        return self._link.server_version

    @property
    def traffic(self) -> Traffic:
        """Bytes to and from servers since the start: a live view."""
        return self._link.traffic

    @property
    def trouble(self) -> str:
        """Why the last connection, or the last try at one, ended."""
        return self._link.trouble

    async def ready(self, timeout_s: float) -> None:
        """Until connected. Raises `BusUnavailable` after `timeout_s` seconds."""
        await self._link.ready(timeout_s)

    async def flush(self, timeout_s: float) -> None:
        """Until the server has worked off all that was sent. Raises `BusUnavailable`."""
        await self._link.round_trip(timeout_s)

    async def close(self) -> None:
        """Send what waits, end the connection, fail what waits for answers. Safe to call twice."""
        if self.connected:
            try:
                await self._link.round_trip(CLOSE_FLUSH_S)
            except BusUnavailable:
                log.warning("closed without the server's answer", extra={"event": "bus.close_unanswered"})
        await self._link.close()
        await self._sessions.end()

    def on_session(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call it once a session, after subscriptions are replayed, in order of registration; also at once if a
        session is up. One that raises is tried again while the session lives, and later ones wait for it."""
        self._sessions.add(callback)

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call it each time the connection goes."""
        self._lost_callbacks.append(callback)

    # -- subscriptions ----------------------------------------------------------------------------------------------
    def subscribe(self, subject: str, handler: MessageHandler, *, queue: str | None = None) -> Subscription:
        """Call `handler` for each message, straight from the socket's callback, until `Subscription.close`."""
        return self._table.add(subject, queue, *message_handlers(handler))

    def subscribe_raw(self, subject: str, handler: RawHandler) -> Subscription:
        """As `subscribe`, with (subject, reply, payload): the fast path. Headers are dropped unread."""
        return self._table.add(subject, None, *raw_handlers(handler))

    def watch_gone(self, handler: Callable[[str], None]) -> GoneWatch:
        """`handler(token)` is called when nobody listened to a message that carried `GoneWatch.reply(token)`."""
        self._watches += 1
        watch = GoneWatch(f"{self._inbox}w{self._watches}.", handler)
        self._table.add(watch.wildcard, None, *watch.handlers())
        return watch

    # -- sending ----------------------------------------------------------------------------------------------------
    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
        now: bool = False,
        lazy: bool = False,
    ) -> None:
        """Send; never blocks. `now`: do not wait for more of this loop tick to join the write. `lazy`: nobody waits
        for it, so it leaves with whatever is sent next, or alone after `LAZY_S`; the order stays.

        Raises `BusUnavailable`, `BusSlow`, `BodyTooLarge`, `InvalidName`.
        """
        wire = self._link.wire
        if wire is None:
            raise self._link.unavailable("not connected to NATS")
        command = publish_command(subject, payload, reply, headers, wire.max_payload)
        if wire.pending_bytes and wire.pending_bytes + len(command) > self.settings.pending_limit_bytes:
            raise BusSlow(f"{wire.pending_bytes} bytes wait for the NATS server already")
        if lazy:
            wire.send_lazy(command)
        elif now:
            wire.send_now(command)
        else:
            wire.send(command)

    async def request(
        self, subject: str, payload: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> Message:
        """One answer. Raises `NoResponders`, `DeadlineExceeded`, `BusUnavailable` (also when the connection goes)."""
        if self._answers.denied:
            raise BusDenied(f"NATS lets us hear no answers: {self._answers.denied}")
        reply, future = self._replies.expect(subject)
        try:
            self.publish(subject, payload, reply=reply, headers=headers, now=True)
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise DeadlineExceeded(f"no answer on {subject} within {timeout_s:g} s") from None
        finally:
            self._replies.forget(reply)

    def ask(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        on_answer: Callable[[Message], None],
        on_error: Callable[[PunaError], None],
        headers: Mapping[str, str] | None = None,
        lazy: bool = False,
    ) -> str:
        """As `request`, without a task: one of the two is called, in the socket's own callback, with what that
        returns or raises; also when the session goes. There is no time-out: who gives up calls `forget` with the
        token that this returns, and hears nothing any more. Raises what `publish` raises, and then calls nobody."""
        if self._answers.denied:
            raise BusDenied(f"NATS lets us hear no answers: {self._answers.denied}")
        reply = self._replies.call(subject, Callbacks(on_answer, on_error))
        try:
            self.publish(subject, payload, reply=reply, headers=headers, now=not lazy, lazy=lazy)
        except PunaError:
            self._replies.forget(reply)
            raise
        return reply

    def forget(self, token: str) -> None:
        """Nobody waits any more for what `ask` or `js_publish_nowait` began. Safe to call twice."""
        self._replies.forget(token)

    async def js_publish(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        msg_id: str | None = None,
        ttl_s: float | None = None,
        timeout_s: float = 2.0,
    ) -> PubAck:
        """Store in the stream that takes `subject`. Raises `LineFull`, `NoStream`, `BusUnavailable`. After the
        latter it may be stored all the same: publish again under the same `msg_id`."""
        return await self._jetstream.publish(subject, payload, headers, msg_id, ttl_s, timeout_s)

    def js_publish_nowait(
        self,
        subject: str,
        payload: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        msg_id: str | None = None,
        ttl_s: float | None = None,
        on_ack: Callable[[PubAck], None],
        on_error: Callable[[PunaError], None],
    ) -> str:
        """As `js_publish`, by the rules of `ask`."""
        answered, failed = acknowledged(subject, on_ack, on_error)
        sent = publish_headers(headers, msg_id, ttl_s)
        return self.ask(subject, payload, on_answer=answered, on_error=failed, headers=sent)

    async def js_api(self, api: str, body: dict[str, Any] | None = None, *, timeout_s: float = 2.0) -> dict[str, Any]:
        """Ask `$JS.API.<api>`. Raises `JetStreamError` (status, err_code, description), `BusUnavailable`."""
        return await self._jetstream.api(api, body, timeout_s)

    @property
    def js_prefix(self) -> str:
        """What API subjects begin with: `$JS.API.`, or a domain's."""
        return self._jetstream.prefix

    def _send_if_up(self, command: bytes) -> None:
        if self._link.wire is not None:
            self._link.wire.send(command)

    # -- what the link tells ----------------------------------------------------------------------------------------
    def _session_up(self) -> None:
        self._sessions.begin(self.session)

    def _session_down(self, reason: str) -> None:
        self._sessions.cancel()
        self.denials.clear()
        self._replies.fail(BusUnavailable(f"the connection to NATS was lost: {reason}", retry_after_s=1.0))
        for callback in self._lost_callbacks:
            try:
                callback()
            except Exception as error:  # noqa: BLE001 (logged by _fault; the others must hear it too)
                self._fault("on_lost", error)

    def _server_error(self, text: str) -> None:
        hit = _DENIED.match(text)
        if hit is None:
            log.warning("server error", extra={"event": "bus.server_error", "reason": text})
            return
        kind, subject, queue = hit[1].lower(), hit[2], hit[3]
        log.error("permission denied", extra={"event": "bus.denied", "kind": kind, "subject": subject})
        if len(self.denials) < _DENIALS_KEPT:
            self.denials[subject] = text
        if kind == "publish":
            self._replies.fail(BusDenied(f"NATS does not let this user publish to {subject}"), subject=subject)
        elif self._table.deny(subject, queue, text) and self._answers.denied:
            self._replies.fail(BusDenied(f"NATS lets us hear no answers: {text}"))

    def _fault(self, subject: str, error: BaseException) -> None:
        self.faults += 1
        now_s = asyncio.get_running_loop().time()
        if now_s - self._fault_logged_s < FAULT_LOG_S:
            return
        self._fault_logged_s = now_s
        log.error("handler failed: %s", described(error), extra={"event": "bus.handler_failed", "subject": subject})


def described(error: BaseException) -> str:
    """The error's kind and where it was raised. Its text only if it is ours: others quote what they could not read."""
    text = f": {error}" if isinstance(error, PunaError) else ""
    return f"{type(error).__name__}{text}\n{''.join(traceback.format_tb(error.__traceback__))}"
