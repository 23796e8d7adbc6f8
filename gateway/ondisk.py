"""What the files of one model are doing, over all nodes: one state with its reason, how far, and how long still.

| state         | what there is                                              | a request that no engine could take    |
|---------------|------------------------------------------------------------|----------------------------------------|
| `ready`       | a whole copy on a node that lives                          | held: that node will offer it          |
| `downloading` | none, and one is on its way                                | 503 with progress and `Retry-After`    |
| `verifying`   | none, and one that has come is being checked               | held: it is about to be there          |
| `pending`     | none, and one waits for its turn, for its next try, or for | 503, as for `downloading`              |
|               | a node that takes the task to fetch it                     |                                        |
| `wanted`      | none, and a record wants some                              | the same                               |
| `failed`      | none, and what was tried is not tried again by itself      | 503                                    |
| `away`        | no record, and copies only on nodes that are away           | the same                               |
| `deleting`    | it is being taken away                                     | 404                                    |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from gateway.candidates import asked_by_bus
from gateway.fleet import Fleet, Sighting
from gateway.shelf import Shelf, Shelved, Stored
from schemas.model import CopyProgress, CopyRecord, ModelRecord
from schemas.node import OFFERS_LIMIT
from schemas.task import TaskRecord

DiskState = Literal["ready", "downloading", "verifying", "pending", "wanted", "failed", "away", "deleting"]
COMING: Final[frozenset[DiskState]] = frozenset(("downloading", "verifying", "pending", "wanted"))
OFFERED_WITHIN_S: Final = 10.0
"""A node that has had a copy for this long and does not offer it is not going to."""
_WHOLE: Final = frozenset(("Ready", "Updating"))
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class OnDisk:
    """One model's files, summed up. Nodes are those that live."""

    state: DiskState
    reason: str | None
    ready: tuple[str, ...]
    """Nodes with a whole copy."""
    wanted: int | None
    """Copies that there should be; None: nobody said, and what there is is what there is."""
    progress: float | None = None
    """0 to 1, of the copy that is furthest."""
    eta_s: float | None = None
    speed_bytes_per_s: float | None = None
    """Of all copies together."""
    next_retry_at: float | None = None
    offered_late: bool = False
    """Nodes that have it have had the time to offer it, and do not."""


def look_up(model: str, fleet: Fleet, shelf: Shelf, now: float) -> OnDisk | None:
    """What is known of one model's files; None: nothing at all."""
    stored = shelf.models.get(model)
    return None if stored is None else sum_up(stored, fleet.nodes, now)


def sum_up(stored: Stored, nodes: Mapping[str, Sighting], now: float) -> OnDisk:
    """`nodes`: those that live, by name; `now`: our monotonic clock."""
    here = [one for node, one in stored.copies.items() if node in nodes]
    whole = [one for one in here if one.copy.state in _WHOLE]
    ready = tuple(one.copy.node for one in whole)
    wanted = wanted_copies(stored.record, nodes)
    waits = [task for task in stored.tasks if task.state != "running"]
    if stored.record is not None and stored.record.deleting and not waits:
        return OnDisk("deleting", _deleting(here), ready, 0)
    if whole:
        return OnDisk("ready", None, ready, wanted, offered_late=_late(whole, nodes, now))
    coming = [one.copy for one in here if one.copy.state in ("Downloading", "Verifying")]
    if coming:
        return _coming(coming, wanted)
    waiting = [one.copy for one in here if one.copy.state == "Pending" or _tried_again(one.copy)]
    if waiting:
        first = min(waiting, key=lambda copy: copy.next_retry_at or math.inf)
        return OnDisk("pending", _told(waiting), (), wanted, next_retry_at=first.next_retry_at)
    if stored.tasks:
        return _asked_for((waits or stored.tasks)[0], nodes, wanted)
    failed = [one.copy for one in here if one.copy.state == "Failed"]
    if failed:
        return OnDisk("failed", _told(failed), (), wanted)
    if here or stored.record is None:
        return _nothing_here(stored, here)
    return OnDisk("wanted", _why_nowhere(stored.record, nodes, wanted), (), wanted)


def wanted_copies(record: ModelRecord | None, nodes: Mapping[str, Sighting]) -> int | None:
    """How many copies a record asks for, by the nodes that live."""
    if record is None:
        return None
    if record.deleting:
        return 0
    copies = record.placement.copies
    return len(suitable(record, nodes)) if copies == "all" else copies


def suitable(record: ModelRecord, nodes: Mapping[str, Sighting]) -> list[str]:
    """Nodes that the record's selector takes."""
    holds = record.placement.selector.holds
    return [node for node, one in nodes.items() if asked_by_bus(one.beat) and holds(one.beat.labels)]


def fraction(progress: CopyProgress) -> float | None:
    """How far a transfer is, 0 to 1."""
    if not progress.bytes_total:
        return None
    return min(progress.bytes_done / progress.bytes_total, 1.0)


def _tried_again(copy: CopyRecord) -> bool:
    return copy.state == "Failed" and copy.next_retry_at is not None


def _late(whole: Sequence[Shelved], nodes: Mapping[str, Sighting], now: float) -> bool:
    """A node with more models than a heartbeat holds may serve this one all the same."""
    return all(
        now - one.changed_at > OFFERED_WITHIN_S and len(nodes[one.copy.node].beat.offers) < OFFERS_LIMIT
        for one in whole
    )


def _coming(copies: Sequence[CopyRecord], wanted: int | None) -> OnDisk:
    fetched = [copy for copy in copies if copy.state == "Downloading"]
    shown = max(fetched or copies, key=lambda copy: fraction(copy.progress) or 0.0)
    times = [copy.progress.eta_s for copy in copies if copy.progress.eta_s is not None]
    speeds = [copy.progress.speed_bytes_per_s or 0.0 for copy in copies]
    doing = "is being fetched to" if fetched else "is being checked on"
    return OnDisk(
        state="downloading" if fetched else "verifying",
        reason=f"it {doing} {_names([copy.node for copy in (fetched or copies)])}",
        ready=(),
        wanted=wanted,
        progress=fraction(shown.progress),
        eta_s=min(times, default=None),
        speed_bytes_per_s=sum(speeds) or None,
    )


def _told(copies: Sequence[CopyRecord]) -> str:
    said = [f"{copy.node}: {copy.reason or copy.error or 'it waits for its turn'}" for copy in copies[:_SHOWN]]
    more = len(copies) - len(said)
    return "; ".join(said) + (f"; and {more} more nodes" if more > 0 else "")


def _asked_for(task: TaskRecord, nodes: Mapping[str, Sighting], wanted: int | None) -> OnDisk:
    """A task of which no copy tells."""
    if task.state == "running" and task.node in nodes:
        reason = f"{task.node} is about to fetch it"
    elif task.state == "running":
        reason = f"{task.node}, which was to fetch it, is away; it goes on there, or on another node"
    elif task.error or task.reason:
        said = "; ".join(text for text in (task.error, task.reason) if text)
        reason = f"it waits for {'its next try' if task.state == 'retrying' else 'a node that can fetch it'}: {said}"
    elif task.node is not None and task.node not in nodes:
        reason = f"it waits for node {task.node}, which is not connected"
    else:
        reason = f"it waits for {task.node or 'a node'} to take the task"
    return OnDisk("pending", reason, (), wanted, next_retry_at=task.next_retry_at)


def _deleting(here: Sequence[Shelved]) -> str:
    nodes = [one.copy.node for one in here]
    return f"it is being deleted on {_names(nodes)}" if nodes else "it was deleted"


def _nothing_here(stored: Stored, here: Sequence[Shelved]) -> OnDisk:
    if here:
        return OnDisk("deleting", _deleting(here), (), None)
    return OnDisk("away", f"its files are on {_names(list(stored.copies))}, away now", (), None)


def _why_nowhere(record: ModelRecord, nodes: Mapping[str, Sighting], wanted: int | None) -> str:
    there = suitable(record, nodes)
    if not nodes:
        return "no node is connected"
    if not there:
        return f"its selector takes none of the nodes that are connected ({_names(list(nodes))})"
    if wanted == 0:
        return "its record asks for no copies"
    return f"{_names(there)} {'has' if len(there) == 1 else 'have'} not begun to fetch it"


def _names(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:_SHOWN])
    return f"{shown} and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else shown
