"""One request in one engine: the engine's bytes go to the reply as they come.

An answer of 503 is the engine that is not ready yet, of 401 a stranger on its port: neither is ever passed on. Any
other status below 500 is the requester's to see. A stream that ends without its last event has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from schemas.errors import DeadlineExceeded, EngineFailed, ModelLoading, PunaError
from schemas.request import OPS
from schemas.subjects import H_TRACEPARENT
from web.call import Call
from web.client import Client
from worker.reply import Reply, Summary
from worker.sse import Tail, cut, pieces
from worker.standing import Standing
from worker.work import Work

SSE: Final = "text/event-stream"
LOADING_RETRY_S: Final = 1.0


class Inference:
    """The work on one request, from the engine's call to its end. `on_done` is called once, when the slot is free.

    First `begin`, then, in the same turn of the loop, `answer_to`: what the answer needs is made while the engine
    already reads.
    """

    reply: Reply

    def __init__(
        self,
        work: Work,
        on_done: Callable[[Inference], None],
        *,
        piece_bytes: int,
        clock: Callable[[], float],
        explain: Explain | None = None,
    ) -> None:
        self.work = work
        self.started_at = clock()
        self.first_data_at: float | None = None
        self.status = 0
        self.bytes_out = 0
        self.outcome: PunaError | None = None
        """Why it failed; `None` while it runs and after a whole answer."""
        self.summary = Summary()
        self._on_done = on_done
        self._explain = explain
        self._piece_bytes = piece_bytes
        self._clock = clock
        self._call: Call | None = None
        self._done = False
        self._streaming = False
        self._rest = b""
        self._tail = Tail()

    def begin(self, client: Client) -> None:
        """Ask the engine."""
        head = self.work.head
        headers = [("x-request-id", head.request_id)]
        if head.traceparent:
            headers.append((H_TRACEPARENT, head.traceparent))
        self._call = client.stream("POST", OPS[head.op], self.work.body, self, headers=headers)

    def answer_to(self, reply: Reply) -> None:
        """Ask the requester, and answer it."""
        self.reply = reply
        reply.begin(self)

    # -- from the engine ---------------------------------------------------------------------------------------------
    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers of the engine's answer."""
        self.status = status
        if status == 503:
            return self.abandon(_not_ready())
        if status in (401, 403):
            return self.abandon(EngineFailed("a stranger answers on the engine's port"))
        content_type = headers.get("content-type", "application/json")
        self._streaming = status == 200 and content_type.startswith(SSE)
        self.reply.open(status, content_type)
        return None

    def data(self, data: bytes) -> None:
        """The hot path: what one read gave, cut after its last event."""
        if self._done:
            return
        if self._streaming:
            data, self._rest = cut(self._rest, data)
            if not data:
                return
        if self.first_data_at is None:
            self.first_data_at = self._clock()
        self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        self.bytes_out += len(data)
        self._tail.add(data)
        if len(data) <= self._piece_bytes:
            self.reply.data(data)
            return
        for piece in pieces(data, self._piece_bytes):
            self.reply.data(piece)

    def end(self) -> None:
        """The engine's answer ended, by its own account whole."""
        if self._done:
            return
        if self._rest:
            rest, self._rest = self._rest, b""
            self._hand_on(rest)
        if self._streaming and not self._tail.is_whole(self.work.head.op):
            self._broke_off(EngineFailed("the engine's stream broke off before its end"))
        else:
            self._finish(None)

    def failed(self, error: Exception) -> None:
        """The connection to the engine broke, or it did not speak HTTP."""
        if isinstance(error, PunaError):
            self._broke_off(error)
        else:
            self._broke_off(EngineFailed(f"the engine failed while it answered: {error}"))

    def _broke_off(self, error: PunaError) -> None:
        if self._explain is None:
            self._finish(error)
        elif not self._done:
            self._explain(self, error, self._finish)

    # -- from the reply, the clock, an operator ------------------------------------------------------------------------
    def pause(self) -> None:
        """The reader is behind."""
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """The reader has caught up."""
        if self._call is not None:
            self._call.resume()

    def abandon(self, error: PunaError) -> None:
        """Close the engine's stream, which frees its slot, and tell `error`."""
        if self._done:
            return
        if self._call is not None:
            self._call.abort()
        self._finish(error)

    def tick(self, now: float) -> None:
        """The deadline is looked at."""
        if now >= self.work.deadline_at:
            self.abandon(DeadlineExceeded("the request's deadline passed while it was answered"))

    def _finish(self, error: PunaError | None) -> None:
        if self._done:
            return
        self._done = True
        self.outcome = error
        facts = self._tail.facts() if error is None else {}
        first_s = None if self.first_data_at is None else self.first_data_at - self.started_at
        self.summary = Summary(
            usage=facts.get("usage"),
            timings=facts.get("timings"),
            waited_s=self.work.waited_s + self.started_at - self.work.received_at,
            first_data_s=first_s,
            total_s=self._clock() - self.started_at,
        )
        self._call = None  # it knows us: without this cycle it need not wait for the garbage collector
        if error is None:
            self.reply.end(self.summary)
        else:
            self.reply.error(error)
        self._on_done(self)


def _not_ready() -> ModelLoading:
    error = ModelLoading("the engine is not ready", retry_after_s=LOADING_RETRY_S)
    error.loading = Standing("loading", "its engine says that it is not ready").told()
    return error


Explain = Callable[[Inference, PunaError, Callable[[PunaError], None]], None]
"""Told of an engine that broke off; calls back, now or later, with the error that it really was."""
