"""One request while it is answered: from the line, over frames, to the client.

Rules
- Only frames of the present epoch count. `seq` counts from 0 (`accept`); lower than expected is a repetition after a
  reconnect and is dropped, higher means that frames are lost.
- The first `accept` of an epoch is answered `go`, any other `gone`; frames with another mark are not ours. The same
  `accept` again is `go` again: our answer was lost (one without a mark only while nothing came after it).
- As long as the client has seen nothing of the answer, a lost worker or a retryable failure means the next epoch.
  Afterwards it means an error event: a second try would say other words.
- An epoch that was offered to one node and not accepted is no try: the next one goes into the line at once.
- `frame` with kind `data` is the hot path: a split, two compares and a write.
"""

from __future__ import annotations

from typing import Final, Literal

import orjson

from gateway import trace
from gateway.admission import Ticket
from gateway.affinity import Home
from gateway.answer import SSE, Answer
from gateway.owner import Owner
from gateway.poison import poisoned
from gateway.serving import Loading
from gateway.silence import KeepAlive, Silence
from gateway.verdict import Progress, is_death, judge
from schemas.errors import EngineFailed, ModelLoading, PunaError, WorkerLost
from schemas.frame import ACCEPT, DATA, END, ERROR, GO, GONE, HEAD_LIMIT_BYTES, LOST_AFTER_S, OPEN, BadFrame
from schemas.reply import End, Failure, Open, accept_in, open_in
from web.headers import retry_headers

_PASSING: Final = frozenset((500, 502, 503, 504))
"""Statuses of an engine that another engine, or another moment, may not give."""
_DONE_MARK: Final = b"data: [DONE]"
_ENDS_WITH_DONE: Final = frozenset(("chat", "completions"))

CREDIT_AFTER_BYTES: Final = 256 << 10
"""An answer that is gathered here is credited each time it has grown so much: a worker keeps 1 MiB and then waits."""

Outcome = Literal["ok", "refused", "failed", "lost", "deadline", "left"]


class Stream:
    """One request and its answer. Every method is a plain call out of a callback of the loop."""

    __slots__ = (
        "_accepted",
        "_early",
        "_epoch_text",
        "_flowing",
        "_keep_alive",
        "_last",
        "_open",
        "_owed_bytes",
        "_owner",
        "_silence",
        "_write",
        "accepted_at",
        "answer",
        "bytes_out",
        "credited",
        "data_frames",
        "deaths",
        "duplicates",
        "end",
        "engine",
        "epoch",
        "error_code",
        "first_data_at",
        "held",
        "in_store",
        "line_sequence",
        "next_seq",
        "node",
        "offer",
        "outcome",
        "submission",
        "ticket",
        "token",
        "tries",
    )

    def __init__(self, ticket: Ticket, token: str, answer: Answer, owner: Owner, *, deaths: int = 0) -> None:
        self.ticket = ticket
        self.token = token
        """The last part of the subject that its frames come on."""
        self.answer = answer
        self.outcome: Outcome | None = None
        self.error_code: str | None = None
        self.held: Loading | None = None
        """What keeps everybody from taking it from the line."""
        self.deaths = deaths
        """Engines that died of it, in earlier lives of the same request too."""
        self.offer: Home | None = None
        """The engine that this epoch was offered to, because it holds the conversation."""
        self.tries = 1
        self.in_store = False
        """Its body is in the object store."""
        self.submission = 0
        """Counts attempts to put it into the line; an older attempt that comes back late has no say."""
        self.epoch = 1
        self.bytes_out = 0
        self.data_frames = 0
        self.duplicates = 0
        self.end: End | None = None
        self._owner = owner
        self._write = answer.write
        self._keep_alive = KeepAlive(owner.keep_alive_s, ticket.arrived_at)
        self._flowing = False
        self._fresh_epoch()

    def _fresh_epoch(self) -> None:
        self._epoch_text = b"%d" % self.epoch
        self.node: str | None = None
        self.engine = ""
        self.line_sequence: int | None = None
        self.next_seq = 0
        self.credited = 0
        """Frames before this number need not be kept by the worker."""
        self._accepted: bytes | None = None
        self.accepted_at: float | None = None
        self.first_data_at: float | None = None
        self._open: Open | None = None
        self._early: list[bytes] = []
        self._owed_bytes = 0
        self._last = b""
        self._silence = Silence()

    @property
    def done(self) -> bool:
        """It has its answer, or nobody wants one any more."""
        return self.outcome is not None

    @property
    def waiting(self) -> bool:
        """No worker has it."""
        return self.node is None and self.outcome is None

    @property
    def offered(self) -> bool:
        """One node was offered it, and has not accepted it yet."""
        return self.offer is not None and self.waiting

    # -- frames ------------------------------------------------------------------------------------------------------
    def frame(self, raw: bytes, reply: str) -> None:
        """One frame as it came. Raises `BadFrame`."""
        cut = raw.find(b"\n", 0, HEAD_LIMIT_BYTES)
        try:
            kind, epoch, number = raw[:cut].split(b" ")
            seq = int(number)
        except ValueError as error:
            raise BadFrame("the head line is not '<kind> <epoch> <seq>'") from error
        if kind == DATA and seq == self.next_seq and epoch == self._epoch_text and self.node is not None:
            self.next_seq = seq + 1
            payload = raw[cut + 1 :]
            self.data_frames += 1
            self.bytes_out += len(payload)
            self._last = payload
            if self._flowing:
                self._write(payload)
            else:
                self._first(payload)
        else:
            self._slow_frame(kind, epoch, seq, raw[cut + 1 :], reply)

    def _slow_frame(self, kind: bytes, epoch: bytes, seq: int, payload: bytes, reply: str) -> None:
        if kind == ACCEPT:
            self._accept(epoch, payload, reply)
        elif self.node is None:
            if kind == ERROR and epoch.partition(b".")[0] == self._epoch_text:
                self._control(kind, payload)
        elif epoch != self._epoch_text:
            return
        elif seq < self.next_seq:
            self.duplicates += 1
        elif seq > self.next_seq:
            self.lost(WorkerLost(f"frames of node {self.node} were lost on the way"))
        else:
            self.next_seq = seq + 1
            self._control(kind, payload)

    def _control(self, kind: bytes, payload: bytes) -> None:
        if kind == OPEN:
            self._open = open_in(payload)
        elif kind == END:
            self._end(End.decode(payload))
        elif kind == ERROR:
            self._error(Failure.decode(payload))

    def _accept(self, epoch: bytes, payload: bytes, reply: str) -> None:
        if self.node is not None:
            same = epoch == self._epoch_text and payload == self._accepted
            again = same and (b"." in epoch or self.next_seq == 1)
            self._owner.reply(reply, GO if again else GONE)
        elif epoch.partition(b".")[0] != self._epoch_text:
            self._owner.reply(reply, GONE)
        else:
            self._bind(epoch, payload, reply)

    def _bind(self, epoch: bytes, payload: bytes, reply: str) -> None:
        """From now on only frames with the mark of this `accept` count."""
        who = accept_in(payload)
        if self._owner.reply(reply, GO):
            self.node, self.engine, self._accepted, self._epoch_text = who.node, who.engine, payload, epoch
            self.next_seq = 1
            self._silence.broken(1)
            self.accepted_at = self._owner.clock()
            if self.offer is not None:
                self._owner.taken(self)

    def _first(self, payload: bytes) -> None:
        head = self._open or Open(content_type=SSE if self.ticket.stream else "application/json")
        self._open = head
        if self.first_data_at is None:
            self.first_data_at = self._owner.clock()
        if self.ticket.stream and head.status == 200 and head.content_type.startswith(SSE):
            trace.add_headers(self, self._owner.clock())
            self.answer.begin()
            self._flowing = True
            self._write(payload)
            return
        self._early.append(payload)
        self._owed_bytes += len(payload)
        if self._owed_bytes >= CREDIT_AFTER_BYTES:
            self._owed_bytes = 0
            self._owner.credit(self)
        if self.bytes_out > self._owner.answer_bytes:
            text = f"the answer is over {self._owner.answer_bytes} bytes; ask for less, or for a stream"
            self._owner.withdraw(self)
            self.fail(EngineFailed(text))

    # -- ends --------------------------------------------------------------------------------------------------------
    def _end(self, end: End) -> None:
        self.end = end
        if self._flowing and self.ticket.op in _ENDS_WITH_DONE and _DONE_MARK not in self._last[-64:]:
            self.fail(EngineFailed("the engine's stream broke off before its end"))
        elif self._flowing:
            self.answer.finish()
            self._over("ok")
        elif self._open is None or not self._early:
            self.lost(EngineFailed(f"the engine on {self.node} gave no answer"))
        elif self._open.status in _PASSING and self._may_try_again:
            self._again(EngineFailed(f"the engine on {self.node} answered {self._open.status}"))
        else:
            self._whole(self._open)

    def _whole(self, head: Open) -> None:
        trace.add_headers(self, self._owner.clock())
        self.answer.whole(head.status, head.content_type, b"".join(self._early))
        self._over("ok" if head.status < 400 else "refused" if head.status < 500 else "failed")

    def _error(self, failure: Failure) -> None:
        if is_death(failure):
            self.deaths += 1
            self._owner.engine_died(self, failure.as_error().message)
        tries_left = self._owner.tries - self.tries
        verdict = judge(failure, Progress(self.offered, self._flowing, tries_left, self.deaths))
        if verdict == "again":
            self._again(failure.as_error())
        elif verdict == "line":
            self._owner.fall_back(self, failure.code)
        elif verdict == "poisoned":
            self.fail(poisoned(failure.as_error().message))
        else:
            self._pass_on(failure)

    def _pass_on(self, failure: Failure) -> None:
        """The client hears of it in the words of the node, or of its engine."""
        self.error_code = failure.code
        if failure.body is None or "error" not in failure.body:
            error = failure.as_error()
            error.retry_after_s = failure.retry_after_s
            self.fail(error)
            return
        trace.add_headers(self, self._owner.clock())
        status = failure.status if 400 <= failure.status < 600 else 502
        extra = retry_headers(failure.retryable, status, failure.retry_after_s)
        self.answer.refuse(status, orjson.dumps(failure.body), extra)
        self._over("refused" if status < 500 else "failed")

    def lost(self, why: PunaError) -> None:
        """The worker, or what it sent, is lost: to another one if that is still possible."""
        self._owner.withdraw(self)
        if self._may_try_again:
            self._again(why)
        else:
            self.fail(why, "lost")

    @property
    def _may_try_again(self) -> bool:
        return not self._flowing and self.tries < self._owner.tries

    def _again(self, why: PunaError) -> None:
        self.tries += 1
        self.next_epoch()
        self._owner.again(self, why)

    def next_epoch(self) -> None:
        """Nothing of the present one counts any more."""
        self.epoch += 1
        self.offer = None
        self.bytes_out = self.data_frames = 0
        self._fresh_epoch()

    def fail(self, error: PunaError, outcome: Outcome = "failed") -> None:
        """Tell the client, in the way that is still open, and be done."""
        if self.done:
            return
        self.error_code = error.code
        if isinstance(error, ModelLoading) and error.loading is None and self.held is not None:
            error.loading = self.held.told()
        trace.add_headers(self, self._owner.clock())
        self.answer.fail(error)
        self._over("refused" if error.http_status < 500 else outcome)

    def left(self) -> None:
        """The client closed its connection."""
        if not self.done:
            self.error_code = "cancelled"
            self._owner.withdraw(self)
            self._over("left")

    def _over(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._early = []
        self._last = b""
        self._owner.ended(self)

    # -- time --------------------------------------------------------------------------------------------------------
    def tick(self, now: float, step_s: float, connected: bool) -> None:
        """`step_s` of the loop's life have passed. A loop that stood still for longer has not listened for longer."""
        if now >= self.ticket.deadline_at:
            self._owner.withdraw(self)
            self.fail(trace.too_late(self), "deadline")
            return
        if self.ticket.stream and self._keep_alive.due(self.bytes_out, now):
            self.answer.keep_alive()
        if self.node is not None and connected and self._silence.too_long(self.next_seq, step_s):
            self.lost(WorkerLost(f"node {self.node} has said nothing for {LOST_AFTER_S:.0f} s"))

    def heard_anew(self) -> None:
        """A new session: the silence before it says nothing of the worker."""
        self._silence.broken(self.next_seq)

    def credit(self, limit_bytes: int) -> tuple[str, int, int]:
        """The stream's credit line. A client that does not keep up holds the number back, and so the worker."""
        if not self._flowing or self.answer.buffered_bytes <= limit_bytes:
            self.credited = self.next_seq
        return (self.token, self.epoch, self.credited)
