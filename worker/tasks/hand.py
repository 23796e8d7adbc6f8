"""What is said of a message in the tasks stream while this node has it in its hands.

Queue and consumer are on the server's disk, so a delivery outlives the session that it came in: a server that was
started anew, or a connection that broke, must not make another node begin what is still being worked on here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bus.job import Job
from schemas.errors import PunaError
from worker.tasks.cancelling import Queue


def keep(job: Job) -> None:
    """A sign of life. Should the queue itself have been made anew meanwhile, it does no harm to whose it is now."""
    if not job.working():
        _lasting(job).working()


async def settle(queue: Queue, job: Job, task: str, say: Callable[[Job], bool]) -> None:
    """Say the last word. In another session than it came in, only if the message is still that of the task; what could
    not be said is said when it comes again."""
    if say(job):
        return
    try:
        if await queue.task_at(job.stream_sequence) == task:
            say(_lasting(job))
    except PunaError:
        return


def _lasting(job: Job) -> Job:
    return replace(job, valid=lambda: True)
