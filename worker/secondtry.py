"""What is said of work that an engine broke off, and the one more try that a plain client's request gets.

A gateway does all this for its own requests; a plain client has nobody. So a request of which nothing was answered yet
goes back into the line as the next epoch when its engine died; when that happens again it is refused for good.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from bus.watched import Tasks
from schemas.errors import EngineDied, PoisonedRequest, PunaError
from web.client import Client
from worker.deaths import Deaths, Finish
from worker.inference import Inference
from worker.line import Line
from worker.native import NativeReply
from worker.reply import Reply
from worker.work import Work


class SecondTry:
    """`refuse` tells the requester of one that could not get back into the line; `clock` is the loop's, in seconds."""

    def __init__(
        self,
        deaths: Deaths,
        line: Line,
        *,
        tasks: Tasks,
        clock: Callable[[], float],
        refuse: Callable[[Work, Reply | None, PunaError], None],
    ) -> None:
        self._deaths = deaths
        self._line = line
        self._tasks = tasks
        self._clock = clock
        self._refuse = refuse

    def explain(self, engine: str, client: Client, broken: Inference, error: PunaError, finish: Finish) -> None:
        """The engine broke off with `error`; `finish` is called with what it really was."""
        self._deaths.explain(engine, client, error, partial(self._explained, broken.work, broken.reply, finish))

    def _explained(self, work: Work, reply: Reply, finish: Finish, error: PunaError) -> None:
        if isinstance(error, EngineDied) and isinstance(reply, NativeReply):
            if work.head.deaths:
                error = PoisonedRequest("this request has ended two engines; it is not tried again")
            elif reply.untouched:
                reply.withdraw()
                self._tasks.start(f"line {work.head.request_id}", self._once_more(work))
        finish(error)

    async def _once_more(self, work: Work) -> None:
        head = replace(work.head, epoch=work.head.epoch + 1, deaths=work.head.deaths + 1)
        try:
            await self._line.put(work, work.deadline_at - self._clock(), head=head)
            work.claim.settle()
        except PunaError as error:
            self._refuse(work, None, error)
