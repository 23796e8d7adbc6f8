"""One client's connection: requests in order, one at a time, and the clocks that end it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from typing import cast

from schemas.errors import PunaError, RequestTimeout, Unavailable
from web import tcp
from web.clock import Clock
from web.exchange import Exchange
from web.house import House
from web.message import CONTINUE, Refusal, Request, render_refusal
from web.outlet import Outlet
from web.reader import Phase, RequestReader

log = logging.getLogger(__name__)


class Connection(asyncio.Protocol):
    """Owns one socket. The reader finds requests, the handler answers them, `sweep` ends what takes too long."""

    __slots__ = (
        "_backlog",
        "_clock",
        "_closing",
        "_continue_due",
        "_current",
        "_house",
        "_kernel_bytes",
        "_limits",
        "_reader",
        "_reading_held",
        "_serving",
        "_transport",
        "outlet",
    )
    outlet: Outlet
    _clock: Clock
    _reader: RequestReader
    _transport: asyncio.Transport

    def __init__(self, house: House) -> None:
        self._house = house
        self._limits = house.limits
        self._kernel_bytes = house.limits.write_buffer_bytes
        self._current: Exchange | None = None
        self._backlog: list[Request | Refusal] = []
        self._serving = False
        self._closing = False
        self._reading_held = False
        self._continue_due = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        high = self._limits.write_buffer_bytes
        transport.set_write_buffer_limits(high=high, low=high // 4)
        tcp.keep_kernel_buffer_small(transport, high)
        self.outlet = Outlet(transport, self._house.window)
        self._clock = Clock(self._limits, self.outlet, self._house.loop.time)
        peer = transport.get_extra_info("peername")
        self._reader = RequestReader(self._limits, str(peer[0]) if peer else "", self)
        self._house.connections.add(self)
        self._turn_away_if_full(len(self._house.connections))

    def _turn_away_if_full(self, count: int) -> None:
        limit = self._limits.connections
        if count > 2 * limit:
            self._transport.abort()
        elif count > limit:
            error = Unavailable(f"all {limit} connections are taken; try again soon", retry_after_s=1.0)
            self._answer_refusal(Refusal(error, {}))

    def data_received(self, data: bytes) -> None:
        if not self._closing:
            self._reader.feed(data)
            self._rearm()

    def eof_received(self) -> None:
        self._closing = True
        self._clock.watch_stall()
        if self._current is not None:
            self._current.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.outlet.discard()
        self._backlog.clear()
        house = self._house
        house.connections.discard(self)
        if not house.connections:
            house.emptied.set()
        if self._current is not None:
            self._current.leave()

    def pause_writing(self) -> None:
        self.outlet.paused = True
        self._clock.watch_stall()

    def resume_writing(self) -> None:
        self.outlet.paused = False
        current = self._current
        if current is not None and current.on_drained is not None and not current.closed:
            current.on_drained()

    # what the reader tells

    def received(self, request: Request) -> bool:
        if self._closing:
            return False
        self._continue_due = False
        if self._current is None and not self._backlog:
            self._serve(request)
        else:
            self._backlog.append(request)
        if len(self._backlog) >= self._limits.pipelined and not self._reading_held:
            self._reading_held = True
            self._transport.pause_reading()
        return not self._reading_held

    def refused(self, error: PunaError) -> None:
        if self._closing:
            return
        refusal = Refusal(error, self._reader.headers)
        if self._current is None and not self._backlog:
            self._answer_refusal(refusal)
        else:
            self._backlog.append(refusal)

    def expects_continue(self) -> None:
        if self._current is None and not self._backlog:
            self._transport.write(CONTINUE)
        else:
            self._continue_due = True

    # what an exchange asks

    def keeps_alive(self, request: Request) -> bool:
        return request.keep_alive and not (self._house.draining and not self._backlog)

    def soon(self, callback: Callable[[], None]) -> None:
        self._house.loop.call_soon(callback)

    def answered(self, *, keep_alive: bool) -> None:
        self._current = None
        if self._closing:
            return
        if keep_alive and not (self._house.draining and not self._backlog and self._reader.phase is Phase.IDLE):
            self._next()
            self._rearm()
        else:
            self._close()

    def widen(self, size: int) -> None:
        if size > self._kernel_bytes:
            self._kernel_bytes = size
            tcp.keep_kernel_buffer_small(self._transport, size)

    def cut(self, *, reset: bool) -> None:
        self._current = None
        self._closing = True
        if reset:
            tcp.reset(self._transport)
            return
        self.outlet.flush()
        self._clock.watch_stall()
        self._transport.close()

    # requests in order

    def _serve(self, request: Request) -> None:
        exchange = self._current = Exchange(request, self)
        try:
            self._house.handler(exchange)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises becomes this one request's 500
            self._handler_failed(exchange, error)

    def _handler_failed(self, exchange: Exchange, error: Exception) -> None:
        place = traceback.extract_tb(error.__traceback__)[-1]
        # The exception's text is left out: it may quote the request.
        detail = {"event": "handler_failed", "error": type(error).__name__, "at": f"{place.filename}:{place.lineno}"}
        log.error("handler_failed error=%s at=%s", detail["error"], detail["at"], extra=detail)
        if exchange.started:
            exchange.abort()
        else:
            failure = PunaError("the server failed on this request; its log says where")
            headers = self._house.headers_of(failure, exchange.request.headers)
            exchange.respond(failure.http_status, self._house.render_error(failure), headers=headers)

    def _next(self) -> None:
        if self._serving:
            return
        self._serving = True
        try:
            self._serve_backlog()
        finally:
            self._serving = False
        if self._reading_held and len(self._backlog) < self._limits.pipelined and not self._closing:
            self._reading_held = False
            self._clock.off()
            self._transport.resume_reading()
            self._reader.resume()

    def _serve_backlog(self) -> None:
        while self._current is None and self._backlog and not self._closing:
            item = self._backlog.pop(0)
            if isinstance(item, Refusal):
                self._answer_refusal(item)
            else:
                self._serve(item)
        if self._continue_due and self._current is None and not self._closing:
            self._continue_due = False
            self._transport.write(CONTINUE)

    def _answer_refusal(self, refusal: Refusal) -> None:
        error, house = refusal.error, self._house
        log.info("request_refused code=%s", error.code, extra={"event": "request_refused", "code": error.code})
        headers = house.headers_of(error, refusal.asked)
        self.outlet.send(render_refusal(error.http_status, house.render_error(error), headers))
        self._linger()

    # the end

    def _close(self) -> None:
        if self._reader.unread:
            self._linger()
            return
        self._closing = True
        self._clock.watch_stall()
        self._transport.close()

    def _linger(self) -> None:
        """Say that nothing more comes and drop what still arrives: a close now would reset the unread answer away."""
        self._closing = True
        self._clock.linger()
        if self._reading_held:
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def drain(self) -> None:
        if not self._closing and self._current is None and not self._backlog and self._reader.phase is Phase.IDLE:
            self._close()

    def kill(self) -> None:
        self._transport.abort()

    # clocks

    def _rearm(self) -> None:
        if not self._closing:
            reader = self._reader
            ours = self._reading_held or (reader.phase is Phase.IDLE and bool(self._current or self._backlog))
            self._clock.arm(reader.phase, reader.messages, ours=ours)

    def sweep(self, now: float) -> None:
        if (self._closing or self.outlet.paused) and self.outlet.buffered_bytes:
            if self._clock.stalled(now):
                log.info("client_stalled", extra={"event": "client_stalled", "bytes": self.outlet.buffered_bytes})
                self._transport.abort()
        elif self._clock.passed(now):
            self._expire()

    def _expire(self) -> None:
        if self._closing:
            self._transport.abort()
        elif self._reader.phase is Phase.IDLE:
            self._close()
        else:
            part = "headers" if self._reader.phase is Phase.HEAD else "body"
            self._reader.ended = True
            self._clock.off()
            self.refused(RequestTimeout(f"the request's {part} took too long to arrive"))
