"""One request in a simulated engine: a slot is waited for, then tokens come at the told rate, by timers alone."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import orjson

from bench.simulate import answer
from bench.simulate.journal import Journal
from bench.simulate.settings import Behaviour
from web.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request's body says. `number` is its `seed`: the load generator's number of the request."""

    stream: bool
    tokens: int | None
    number: int | None

    @classmethod
    def of(cls, raw: bytes) -> Asked:
        """Raises `ValueError`."""
        body: Any = orjson.loads(raw)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        known = cast(dict[str, Any], body)
        tokens = known.get("max_tokens") or known.get("max_completion_tokens")
        return cls(known.get("stream") is True, tokens, known.get("seed"))


class Run:
    """A request in a slot, from `begin` to its end. `over` is called once, when the slot is free."""

    def __init__(
        self,
        exchange: Exchange,
        asked: Asked,
        model: str,
        like: Behaviour,
        *,
        seconds: tuple[float, float],
        over: Callable[[Run, str], None],
    ) -> None:
        self.asked = asked
        self._exchange = exchange
        self._model = model
        self._like = like
        self._prompt_s, self._answer_s = seconds
        self._tokens = max(1, round(self._answer_s * like.tokens_per_s))
        self._sent = 0
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._began_at = 0.0

    def begin(self) -> None:
        """The slot is taken."""
        self._began_at = self._loop.time()
        self._exchange.on_closed = self._left
        self._timer = self._loop.call_later(self._prompt_s, self._first)

    def stop(self) -> None:
        """No more comes, and no end."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _first(self) -> None:
        if self.asked.stream:
            self._exchange.start(200, content_type="text/event-stream")
            self._write(1)
        self._next()

    def _next(self) -> None:
        """The times are those of the answer's begin, so that a late timer makes no later one later."""
        if self._sent >= self._tokens or not self.asked.stream:
            due_s = self._answer_s
            self._at(due_s, self._end)
            return
        step = max(1, round(self._like.chunk_s * self._like.tokens_per_s))
        count = min(step, self._tokens - self._sent)
        self._at((self._sent + count) / self._like.tokens_per_s, self._chunk, count)

    def _at(self, due_s: float, what: Callable[..., None], *arguments: Any) -> None:
        self._timer = self._loop.call_at(self._began_at + self._prompt_s + due_s, what, *arguments)

    def _chunk(self, count: int) -> None:
        self._write(count)
        self._next()

    def _write(self, count: int) -> None:
        self._exchange.write(answer.delta(self._model, self._sent, count))
        self._sent += count

    def _end(self) -> None:
        self._exchange.on_closed = None
        if self.asked.stream:
            self._exchange.write(answer.last(self._model, self._tokens))
            self._exchange.finish()
        else:
            self._exchange.respond(200, answer.whole(self._model, self._tokens))
        self._over(self, "end")

    def _left(self) -> None:
        self.stop()
        self._over(self, "cut")

    def cut(self) -> None:
        """The engine's process ended."""
        self.stop()
        self._exchange.on_closed = None
        self._exchange.abort()


class Slots:
    """The requests of one engine: so many at a time, the others wait in order. As long as it lives."""

    def __init__(
        self, model: str, count: int, like: Behaviour, dice: random.Random, journal: Journal, **who: Any
    ) -> None:
        self.count = count
        self.busy: set[Run] = set()
        self.on_fault: Callable[[str], None] = lambda _: None
        """Called in the middle of a request with `crash` or `hang`, as the behaviour says."""
        self.model = model
        self._like = like
        self._dice = dice
        self._journal = journal
        self._who = who
        self._waiting: deque[Run] = deque()
        self._faults: set[asyncio.TimerHandle] = set()

    def ask(self, exchange: Exchange, asked: Asked) -> None:
        """A request came."""
        prompt_s = self._like.prompt.draw(self._dice)
        answer_s = self._like.answer.draw(self._dice)
        if asked.tokens is not None:
            answer_s = asked.tokens / self._like.tokens_per_s
        self._plan_fault(prompt_s + answer_s)
        run = Run(exchange, asked, self.model, self._like, seconds=(prompt_s, answer_s), over=self._over)
        if len(self.busy) >= self.count:
            self._waiting.append(run)
            exchange.on_closed = lambda: self._waiting.remove(run)
            return
        self._begin(run)

    def halt(self) -> None:
        """Nothing moves any more."""
        for timer in self._faults:
            timer.cancel()
        for run in self.busy:
            run.stop()

    def end(self) -> None:
        """The process is gone: every connection breaks."""
        self.halt()
        for run in (*self.busy, *self._waiting):
            run.cut()
        for run in self.busy:
            self._tell(run, "cut")
        self.busy.clear()
        self._waiting.clear()

    def _begin(self, run: Run) -> None:
        self.busy.add(run)
        self._tell(run, "begin")
        run.begin()

    def _over(self, run: Run, how: str) -> None:
        self.busy.discard(run)
        self._tell(run, how)
        while self._waiting and len(self.busy) < self.count:
            self._begin(self._waiting.popleft())

    def _tell(self, run: Run, event: str) -> None:
        self._journal.tell(event, number=run.asked.number, model=self.model, **self._who)

    def _plan_fault(self, seconds: float) -> None:
        """Both dice are thrown each time: the sequence does not depend on what happened."""
        crash, hang = self._dice.random() < self._like.crash, self._dice.random() < self._like.hang
        if crash or hang:
            what = "crash" if crash else "hang"
            loop = asyncio.get_running_loop()
            self._faults.add(loop.call_later(seconds / 2, lambda: self.on_fault(what)))
