"""A framed reply: numbered frames that survive a broker which goes and comes.

States: `offered` (the first `accept` is out and has no answer yet), `asking` (another one is), `flowing`, `away` (the
connection was lost; frames are kept), `over`.

Rules
- Frames may follow the first `accept` at once: they bear its mark, and a reader bound to another drops them. `gone`,
  nobody there, or no answer in `ACCEPT_WAIT_S`: the work is abandoned.
- An `accept` that has to be sent again is waited for: what went before it may be lost.
- Every frame stays in the window until it is credited. A full window stops the reading of the engine.
- In a new session one held frame is sent as a knock. Only when the server has heard it and somebody listened, or
  credit came, all that is held is sent again: a reader that is not back yet must see no gap.
- Credit that stays away pauses the work and then ends it. A later epoch in a credit line means that we were given up.
- After `end` or `error` the window is kept for `LINGER_S`, in case the connection goes just then.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from itertools import count
from typing import Final, Literal

from bus.connection import Bus, GoneWatch
from bus.errors import BusSlow, NoResponders
from schemas.errors import BodyTooLarge, BusUnavailable, Cancelled, PunaError
from schemas.frame import (
    ACCEPT,
    DATA,
    END,
    ERROR,
    GO,
    OPEN,
    PING,
    PRESENCE_PROBE_S,
    SILENCE_PING_S,
    encode_frame,
    marked_epoch,
)
from schemas.reply import Ping
from worker.offer import Offer, open_of
from worker.reply import Flow, Summary, fault_of, finish_of
from worker.window import Window
from worker.work import Work

ACCEPT_AGAIN_S: Final = 1.0
"""How long a job rests that nobody answered for."""
CREDIT_PAUSE_S: Final = 3.0
CREDIT_CANCEL_S: Final = 10.0
AWAY_LIMIT_S: Final = 10.0
"""A stream whose connection stays away for this long is ended."""
LINGER_S: Final = 3.0
ACCEPT_TRIES: Final = 3
"""Deliveries of a job after which a requester that does not answer is taken for gone."""

_MARK_MASK: Final = 0xFFFFFFFF
_marks: Final = count(secrets.randbits(32))
"""Each reply's own mark: from a random start, so that two workers have the same one as seldom as two dice."""

_SENDING: Final = frozenset(("offered", "flowing"))

State = Literal["asking", "offered", "flowing", "away", "over"]


class FramedReply:
    """One epoch of one request, on its way to one gateway."""

    def __init__(self, bus: Bus, watch: GoneWatch, work: Work, accept: bytes, clock: Callable[[], float]) -> None:
        self.token = work.head.reply.rpartition(".")[2]
        self.data_frames = 0
        self._bus = bus
        self._work = work
        self._clock = clock
        self._subject = work.head.reply
        self._gone_subject = watch.reply(self.token)
        self._mark = b"%08x" % (next(_marks) & _MARK_MASK)
        self._accept = encode_frame(ACCEPT, marked_epoch(work.head.epoch, self._mark), 0, accept)
        self._offer = Offer(bus, self._subject)
        self._asked = False
        self._window = self._fresh_window()
        self._state: State = "asking"
        self._ended = False
        self._paused = False
        self._absent = False
        self._flow: Flow | None = None
        self._sent_at = self._credit_at = self._away_since = clock()
        self._probe_at = 0.0

    def _fresh_window(self) -> Window:
        return Window(self._work.head.epoch, first_seq=1, mark=self._mark)

    # -- the engine's side -------------------------------------------------------------------------------------------
    def begin(self, flow: Flow) -> None:
        """Ask the requester whether it still wants us."""
        self._flow = flow
        self._ask()

    def open(self, status: int, content_type: str) -> None:
        """The head of the engine's answer."""
        self._put(OPEN, open_of(status, content_type))

    def data(self, data: bytes) -> None:
        """The hot path: a frame, kept and sent."""
        self.data_frames += 1
        self._put(DATA, data)

    def end(self, summary: Summary) -> None:
        """The last frame of a whole answer."""
        self._last(END, finish_of(summary, self.data_frames).encode())

    def error(self, error: PunaError) -> None:
        """The last frame of a failed answer. While nothing could be sent it is the only one."""
        if self._state == "asking":
            self._work.claim.settle()
            self._offer.withdraw()
            self._window, self.data_frames = self._fresh_window(), 0
            self._state = "flowing"
        self._last(ERROR, fault_of(error, self.data_frames).encode())

    def _last(self, kind: bytes, payload: bytes) -> None:
        if self._state != "over" and not self._ended:
            self._put(kind, payload)
            self._ended = True
            self._flow = None

    def _put(self, kind: bytes, payload: bytes) -> None:
        if self._ended or self._state == "over":
            return
        window = self._window
        raw = window.add(kind, payload)
        if self._state in _SENDING and window.unsent == window.next_seq - 1:
            self._publish(raw, probe=kind is DATA or kind is PING)
        if window.full:
            self._pause()

    def _publish(self, raw: bytes, *, probe: bool) -> bool:
        now = self._clock()
        reply = ""
        if probe and now >= self._probe_at:
            self._probe_at = now + PRESENCE_PROBE_S
            reply = self._gone_subject
        try:
            self._bus.publish(self._subject, raw, reply=reply, now=self.data_frames == 1)
        except BusSlow:
            return False
        except BodyTooLarge as error:  # a server with a smaller limit took over: what is held cannot go out any more
            self._abandon(error)
            return False
        except BusUnavailable:
            self.lost()
            return False
        self._window.unsent += 1
        self._sent_at = now
        return True

    def _flush(self) -> None:
        for raw in self._window.waiting():
            if not self._publish(raw, probe=False):
                return

    def _pause(self) -> None:
        if not self._paused and self._flow is not None:
            self._paused = True
            self._flow.pause()

    def _resume(self) -> None:
        if self._paused and self._flow is not None:
            self._paused = False
            self._flow.resume()

    def _abandon(self, error: PunaError, *, silent: bool = True) -> None:
        """Give the work up. `silent`: nobody listens, so nothing is sent any more."""
        if self._state == "over":
            return
        if silent:
            self._state = "over"
            self._offer.withdraw()
        if self._flow is not None and not self._ended:
            self._flow.abandon(error)

    # -- accept ------------------------------------------------------------------------------------------------------
    def _ask(self) -> None:
        try:
            self._offer.ask(self._accept, self._clock(), on_word=self._answered, on_error=self._unheard)
        except BusUnavailable:
            return  # asked again by the next tick with a connection
        except PunaError as error:  # a reply subject that nothing can be published to
            self._work.claim.settle()
            self._abandon(error)
            return
        if not self._asked:
            self._asked, self._state = True, "offered"

    def _unheard(self, error: PunaError) -> None:
        """The question was lost."""
        if isinstance(error, NoResponders):
            self._work.claim.settle()
            self._abandon(Cancelled("the requester is gone"))
        else:
            self.lost()

    def _asking_tick(self, now: float) -> None:
        if self._offer.unanswered(now):
            self._unanswered()
        elif self._state == "asking" and not self._offer.open:
            if now - self._away_since > AWAY_LIMIT_S:
                self._abandon(BusUnavailable("the connection to NATS did not come back in time"))
            elif self._bus.connected:
                self._ask()

    def _answered(self, word: bytes) -> None:
        self._work.claim.settle()
        if self._state not in ("asking", "offered"):
            return
        if word != GO:
            self._abandon(Cancelled("the requester gave this attempt up"))
            return
        again = self._state == "asking"
        self._state = "flowing" if self._bus.connected else "away"
        self._credit_at = self._away_since = self._clock()
        if again:
            self._window.rewind()
        if self._state == "flowing":
            self._flush()

    def _unanswered(self) -> None:
        claim = self._work.claim
        if claim.delivered >= ACCEPT_TRIES:
            claim.drop("the requester does not answer")
        claim.give_back(ACCEPT_AGAIN_S)
        self._abandon(Cancelled("the requester did not answer in time"))

    # -- the reader's side -------------------------------------------------------------------------------------------
    @property
    def away(self) -> bool:
        """The connection was lost since the last frame that certainly had a reader."""
        return self._state == "away"

    def lost(self) -> None:
        """The connection went: keep what comes. Work that waits for `go` asks again by itself."""
        if self._state in _SENDING:
            self._state = "asking" if self._state == "offered" else "away"
            self._away_since = self._clock()

    def knock(self) -> None:
        """Send the oldest held frame, or a ping, with a reply subject that tells if nobody listens."""
        self._absent = False
        if self._window.empty and not self._ended:
            self._window.add(PING, b"")
        self._window.rewind()
        for raw in self._window.waiting()[:1]:
            self._probe_at = 0.0
            self._publish(raw, probe=True)

    def back(self, *, give_up: bool) -> None:
        """Send again what is held if the reader is there."""
        if self._state != "away":
            return
        if not self._absent:
            self._return()
        elif give_up:
            self._abandon(Cancelled("the requester did not come back"))

    def _return(self) -> None:
        self._state = "flowing"
        self._window.rewind()
        self._credit_at = self._clock()
        self._flush()

    def gone(self) -> None:
        """Nobody listened. Right after a broken connection the reader may just not be back yet."""
        if self._state == "away":
            self._absent = True
        elif self._state in _SENDING:
            self._work.claim.settle()
            self._abandon(Cancelled("the requester is gone"))

    def credit(self, epoch: int, next_seq: int) -> None:
        """The reader lives and has what comes before `next_seq`."""
        if epoch != self._window.epoch:
            if epoch > self._window.epoch:
                self._abandon(Cancelled("the requester gave this attempt up"))
            return
        self._credit_at = self._clock()
        self._window.credit(next_seq)
        if self._state == "away" and self._bus.connected:
            self._return()
        if self._window.has_room:
            self._resume()

    # -- time --------------------------------------------------------------------------------------------------------
    def tick(self, now: float) -> bool:
        """Pings, silence, and ends. False: forget this reply."""
        self._work.claim.keep(now)
        if self._state in ("asking", "offered"):
            self._asking_tick(now)
        elif self._state == "away" and now - self._away_since > AWAY_LIMIT_S:
            self._abandon(BusUnavailable("the connection to NATS did not come back in time"))
        if self._state == "flowing":
            self._flowing_tick(now)
        if self._ended and self._state == "flowing":
            return not self._window.empty and now - self._sent_at < LINGER_S
        return self._state != "over"

    def _flowing_tick(self, now: float) -> None:
        if self._window.unsent < self._window.next_seq:
            self._flush()
        if self._ended:
            return
        quiet_s = now - self._credit_at
        if quiet_s > CREDIT_CANCEL_S:
            self._abandon(Cancelled("the requester does not read"), silent=False)
        elif quiet_s > CREDIT_PAUSE_S:
            self._pause()
        if now - self._sent_at >= SILENCE_PING_S:
            self._put(PING, Ping().encode())
