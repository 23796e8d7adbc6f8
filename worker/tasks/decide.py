"""What is done with a task's message, decided plainly: from the record as it is stored and from what has happened.

| record                       | message                         | step                                          |
|------------------------------|---------------------------------|-----------------------------------------------|
| none                         | any                             | claim, epoch 1                                |
| ended                        | sent before it ended            | ack: it is done                               |
| ended                        | sent after, id from the content | claim, next epoch: it is wanted again         |
| ended                        | sent after, id from the sender  | ack: one id, one effect                       |
| to be cancelled              | any                             | write `cancelled`, ack                        |
| of another task, by op, model| any                             | dead letter: the id is in use                 |
| of another message           | any                             | ack, if that message is still in the stream   |
| queued, running, retrying    | the same                        | claim, next epoch; `dead` after `TRIES` claims |

What becomes of work that failed, where any node may do the task:

| the failure    | another live node suits and is not `unable` | step                                                 |
|----------------|---------------------------------------------|------------------------------------------------------|
| the node's own | yes                                         | `queued`, this node is `unable`                      |
| the node's own | no, and some node's may pass                | `retrying`, those nodes may again; `dead` at last    |
| the node's own | no, and none may pass                       | `failed`, with each node's reason                    |
| another        | any                                         | `retrying`, `dead` at last; `failed` if it cannot be |

A message that comes again while its record says `running` is the proof that whoever ran it has said nothing for
`ack_wait`. Whether a write may still be made is decided by the record's revision and epoch, never by a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from schemas.errors import BusUnavailable
from schemas.task import TRIES, TaskOp, TaskRecord, moved
from worker.tasks import unable

DECLINED_DELAY_S: Final = 2.0
"""Before a task that a node could not take is handed out again."""
BUSY_DELAY_S: Final = 1.0
"""The same, where the node is only busy."""
PASSED_ON_DELAY_S: Final = 0.5
"""The same, where another node is known that suits it: it comes round to that one."""
RETRY_AFTER_S: Final = (2.0, 8.0, 30.0, 120.0)
RETRY_MOST_S: Final = 300.0
_REASON_CHARS: Final = 500
_ERROR_CHARS: Final = 1000


@dataclass(frozen=True, slots=True)
class Heard:
    """A message that was read."""

    task: str
    op: TaskOp
    model: str | None
    sequence: int
    published_at: float
    """By the server's clock."""
    own_id: bool
    """The sender chose the id."""
    delivery: str = ""
    """Where the message is acknowledged."""


@dataclass(frozen=True, slots=True)
class Me:
    """This process."""

    node: str
    holder: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A record and where it stands in its bucket; `written_at` is by the server's clock."""

    record: TaskRecord
    revision: int
    written_at: float


@dataclass(frozen=True, slots=True)
class Claim:
    """Write this, and if that succeeds do the work."""

    record: TaskRecord


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is left to do: acknowledge."""


@dataclass(frozen=True, slots=True)
class Doubled:
    """Another message, `sequence`, carries the task: acknowledge this one if that is so, else `again`."""

    sequence: int
    again: Claim | End


@dataclass(frozen=True, slots=True)
class End:
    """Write this, then acknowledge. A dead or failed one goes into the dead-letter stream first."""

    record: TaskRecord


@dataclass(frozen=True, slots=True)
class Later:
    """Write this, then give the message back for `delay_s`."""

    record: TaskRecord
    delay_s: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why work did not succeed."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float | None = None
    of_node: bool = False
    """Another node may not meet it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a node does not begin. `own`: it is to be remembered of this node, for it cannot be seen from others."""

    reason: str
    own: bool = False


@dataclass(frozen=True, slots=True)
class Clash:
    """Another task has this id: into the dead-letter stream, and the record stays as it is."""

    error: str


Step = Claim | Done | Doubled | End | Clash


def on_delivery(heard: Heard, stored: Stored | None, me: Me, now: float) -> Step:
    """What a message that has just come means. See the table above."""
    if stored is None:
        return Claim(_fresh(heard, me, 1, now))
    record = stored.record
    if (record.op, record.model) != (heard.op, heard.model):
        return Clash(f"id {heard.task} is in use by a {record.op} of {record.model}; choose another, or leave it out")
    if record.ended:
        wanted_again = not heard.own_id and heard.published_at > stored.written_at
        return Claim(_fresh(heard, me, record.epoch + 1, now)) if wanted_again else Done()
    if record.cancel:
        return End(moved(record, "cancelled", now, reason="it was cancelled", next_retry_at=None))
    step = _again(heard, record, me, now)
    if record.sequence is not None and record.sequence != heard.sequence:
        return Doubled(record.sequence, step)
    return step


def _fresh(heard: Heard, me: Me, epoch: int, now: float) -> TaskRecord:
    return TaskRecord(
        task=heard.task,
        op=heard.op,
        model=heard.model,
        node=me.node,
        holder=me.holder,
        sequence=heard.sequence,
        delivery=heard.delivery,
        epoch=epoch,
        state="running",
        attempts=1,
        created=now,
        since=now,
    )


def _again(heard: Heard, record: TaskRecord, me: Me, now: float) -> Claim | End:
    record = _lost(record)
    if record.attempts >= TRIES:
        said = f": {record.error}" if record.error else ""
        text = f"given up after {record.attempts} tries, the last on {record.node}{said}"
        return End(_given_up(record, text, now))
    changes: dict[str, object] = {
        "node": me.node,
        "holder": me.holder,
        "sequence": heard.sequence,
        "delivery": heard.delivery,
        "epoch": record.epoch + 1,
        "attempts": record.attempts + 1,
        "reason": None,
        "next_retry_at": None,
        "progress": None,
    }
    return Claim(moved(record, "running", now, **changes))


def _lost(record: TaskRecord) -> TaskRecord:
    """The record of a try whose process was lost. One that had come further than all before does not count: whoever is
    killed often gets there all the same, and what kills its worker does so five times at most."""
    reached = record.progress.bytes_done if record.state == "running" and record.progress is not None else 0
    if reached <= record.reached_bytes:
        return record
    return record.model_copy(update={"reached_bytes": reached, "attempts": record.attempts - 1})


def on_waiting(heard: Heard, stored: Stored | None, me: Me, reason: str, now: float) -> TaskRecord | None:
    """What to write of a task that this node has in its hands and has no room for yet; None: nothing."""
    if stored is None:
        fresh = _fresh(heard, me, 1, now)
        return fresh.model_copy(update={"state": "queued", "attempts": 0, "reason": reason})
    record = stored.record
    if record.state not in ("queued", "retrying") or record.cancel or record.sequence not in (None, heard.sequence):
        return None
    mine = {"node": me.node, "holder": me.holder, "sequence": heard.sequence, "delivery": heard.delivery}
    return record.model_copy(update={**mine, "epoch": record.epoch + 1, "reason": reason, "next_retry_at": None})


def on_restart(record: TaskRecord, me: Me, now: float) -> TaskRecord | None:
    """What a process writes that finds a task in the hands of an earlier life of its node, before it goes on with it;
    None: it is not so. The earlier one can write nothing any more then, should it only have been frozen."""
    if record.ended or record.delivery is None or record.node != me.node or record.holder in (None, me.holder):
        return None
    record = _lost(record)
    state = "retrying" if record.state == "running" else record.state
    mine = {"holder": me.holder, "epoch": record.epoch + 1, "next_retry_at": None}
    reason = f"{me.node} was started anew and goes on with it"
    return moved(record, state, now, reason=reason, **mine) if state != record.state else record.model_copy(update=mine)


def on_message_gone(record: TaskRecord, now: float) -> End:
    """Somebody took its message out of the queue: nobody will do it."""
    why = "its message is not in the queue any more"
    return End(moved(record, "cancelled", now, reason=why, delivery=None, next_retry_at=None))


def on_declined(
    heard: Heard, stored: Stored | None, me: Me, refusal: Refusal, now: float, *, others: bool
) -> Later | End:
    """This node cannot take it. `others`: some other node that lives suits it, so this counts for nothing."""
    if stored is None or stored.record.ended:
        epoch = stored.record.epoch + 1 if stored else 1
        fresh = {"state": "queued", "attempts": 0, "holder": None}
        record = _fresh(heard, me, epoch, now).model_copy(update=fresh)
    elif others and not refusal.own and stored.record.state != "running":
        return Later(stored.record, PASSED_ON_DELAY_S)
    else:
        record = stored.record
    if record.state == "running":
        record = moved(record, "retrying", now)
    if refusal.own:
        record = unable.with_one(record, me.node, refusal.reason, passing=True)
    said = f"{me.node} cannot take it: {refusal.reason}"[:_REASON_CHARS]
    delay_s = PASSED_ON_DELAY_S if others else DECLINED_DELAY_S
    record = record.model_copy(
        update={"declined": record.declined + (not others), "reason": said, "next_retry_at": now + delay_s}
    )
    if record.declined >= TRIES:
        why = unable.said(record) or said
        return End(_given_up(record, f"no node could take it, {record.declined} tries; {why}", now))
    return Later(record if others else unable.for_good(record), delay_s)


def on_failure(record: TaskRecord, failure: Failure, dice: float, now: float, *, others: bool = False) -> Later | End:
    """The work failed; while NATS is away no try counts. `dice` is in 0…1; `others`: another live node suits, and has
    not said that it cannot."""
    error, retryable = failure.message[:_REASON_CHARS], failure.retryable
    if failure.code == BusUnavailable.code:
        at, said = now + DECLINED_DELAY_S, {"error": error, "attempts": record.attempts - 1}
        return Later(moved(record, "retrying", now, next_retry_at=at, reason=None, **said), DECLINED_DELAY_S)
    if failure.of_node and record.node is not None:
        record = unable.with_one(record, record.node, error, passing=retryable)
        if others:
            return _passed_on(record, error, now)
        error = f"no node can do it: {unable.said(record)}" if len(record.unable) > 1 else error
        retryable = any(each.passing for each in record.unable)
    if not retryable:
        return End(moved(record, "failed", now, error=error, reason=None, next_retry_at=None))
    if record.attempts >= TRIES:
        return End(_given_up(record, f"given up after {record.attempts} tries: {error}", now))
    step_s = RETRY_AFTER_S[min(record.attempts, len(RETRY_AFTER_S)) - 1] * (0.5 + 0.5 * dice)
    delay_s = min(max(step_s, failure.retry_after_s or 0.0), RETRY_MOST_S)
    changes = {"error": error, "reason": f"try {record.attempts} of {TRIES} failed", "next_retry_at": now + delay_s}
    return Later(moved(unable.for_good(record), "retrying", now, **changes), delay_s)


def _passed_on(record: TaskRecord, error: str, now: float) -> Later:
    """It is for another node, and the try does not count."""
    at = now + PASSED_ON_DELAY_S
    reason = f"{record.node} cannot do it, another node may: {error}"[:_REASON_CHARS]
    changes = {"attempts": record.attempts - 1, "error": None, "reason": reason, "next_retry_at": at, "progress": None}
    return Later(moved(record, "queued", now, **changes), PASSED_ON_DELAY_S)


def on_stop(record: TaskRecord, now: float) -> Later:
    """The node stops in the middle: another one, or it itself later, goes on, and the try does not count."""
    changes = {"attempts": record.attempts - 1, "reason": f"{record.node} stops", "next_retry_at": now}
    return Later(moved(record, "retrying", now, **changes), 0.0)


def on_success(record: TaskRecord, now: float, said: str | None) -> End:
    """It is done."""
    return End(moved(record, "done", now, reason=said, error=None, next_retry_at=None))


def on_cancelled(record: TaskRecord, now: float, why: str) -> End:
    """It was stopped because somebody wanted that."""
    return End(moved(record, "cancelled", now, reason=why, error=None, next_retry_at=None))


def _given_up(record: TaskRecord, error: str, now: float) -> TaskRecord:
    return moved(record, "dead", now, error=error[:_ERROR_CHARS], reason=None, next_retry_at=None)
