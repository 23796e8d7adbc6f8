"""The tasks of a node and what they are made of."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping

from bus.connection import Bus
from bus.kv import Bucket
from bus.watched import Tasks
from schemas.source import parse_source
from schemas.topology import TASK_ACK_WAIT_S
from worker.sources import find_source
from worker.tasks.cancelling import Canceller, Queue
from worker.tasks.decide import Me
from worker.tasks.effects import Copies, Effects, Engines, Wishes
from worker.tasks.inbox import TaskInbox
from worker.tasks.neighbours import Neighbours
from worker.tasks.records import Records
from worker.tasks.runner import PROGRESS_S, Runner
from worker.tasks.wishes import ModelWishes


def source_is_known(text: str) -> None:
    """Raises `Unsupported` for a source that nothing here can read."""
    find_source(parse_source(text).scheme)


def build_tasks(
    bus: Bus,
    node: str,
    copies: Copies,
    engines: Engines,
    *,
    tasks: Tasks,
    labels: Callable[[], Mapping[str, str]],
    repair: Callable[[], Awaitable[None]],
    tell: Callable[..., None],
    capacity: int,
    ack_wait_s: float = TASK_ACK_WAIT_S,
    progress_s: float = PROGRESS_S,
    wishes: Wishes | None = None,
) -> tuple[TaskInbox, Runner]:
    """The inbox to start, and the runner behind it."""
    names = bus.names
    neighbours = Neighbours(Bucket(bus, names.bucket_nodes), node)
    records = Records(Bucket(bus, names.bucket_tasks))
    models, held = Bucket(bus, names.bucket_models), Bucket(bus, names.bucket_copies)
    effects = Effects(
        copies=copies,
        engines=engines,
        wishes=wishes or ModelWishes(models, held, node, neighbours.labels),
        cancel=Canceller(records, Queue(bus)).cancel,
        labels=labels,
        knows=source_is_known,
        served_elsewhere=neighbours.serve,
    )
    runner = Runner(
        bus,
        Me(node, secrets.token_hex(6)),
        effects,
        records,
        tasks=tasks,
        capacity=capacity,
        ack_wait_s=ack_wait_s,
        others=neighbours.suit,
        tell=tell,
        progress_s=progress_s,
    )
    return TaskInbox(bus, node, runner, ack_wait_s=ack_wait_s, repair=repair), runner
