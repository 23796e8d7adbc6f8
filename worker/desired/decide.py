"""What desired state asks of this node, decided plainly: records, nodes and copies in, a verdict for each model out.

| record           | this node                           | its copy         | verdict                          |
|------------------|-------------------------------------|------------------|----------------------------------|
| tombstone        |                                     | any, or a part   | `Remove`                         |
| cannot be read   |                                     |                  | `Leave`                          |
| none, surely     |                                     | of a record      | `Remove`                         |
| none, perhaps    |                                     | of a record      | `Leave`: the bucket may be lost  |
| wants it         | matches, is among the holders       | as it should be  | `Leave`                          |
| wants it         | matches, is among the holders       | none, or another | `Ensure`                         |
| wants it         | matches, others are the holders     | any              | `Remove`, once theirs are ready  |
| wants it         | matches, a holder cannot, is next   | none, or another | `Ensure`                         |
| wants it         | the selector excludes it            | any              | `Remove`                         |

Copies that a task made, of a model without a record, are nobody's business here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from schemas.model import ModelRecord, Profile
from schemas.selector import holders
from schemas.subjects import LABEL_OF_COPY
from worker.copying import fingerprint

_SERVES: Final = ("Ready", "Updating")
MOST_ASIDE: Final = 16
"""Of one model: when so many nodes cannot hold it, it is hardly the nodes' fault, and no others are asked."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A node that counts. `here`: it was heard of at the last look; else it is away for less than the grace."""

    labels: Mapping[str, str]
    here: bool = True


@dataclass(frozen=True, slots=True)
class Made:
    """What a copy was made for, as far as it matters whether it is still the right one."""

    want: str
    profile: Profile
    retain: bool
    generation: int | None


@dataclass(frozen=True, slots=True)
class Held:
    """What this node has of a model. `made`: of a copy that can be served; None: broken, failed or on its way.

    `recorded`: it was made for a record. `noted`: the record as it is now is on this node's disk.
    """

    made: Made | None
    recorded: bool
    noted: ModelRecord | None = None
    retain: bool = False


def nobody(_record: ModelRecord) -> Collection[str]:
    """All nodes that match can hold it."""
    return ()


@dataclass(frozen=True, slots=True)
class Me:
    """This node. `choose` takes the variant of a record that suits it; `aside` names the nodes that cannot hold one."""

    node: str
    labels: Mapping[str, str]
    choose: Callable[[ModelRecord], ModelRecord]
    aside: Callable[[ModelRecord], Collection[str]] = nobody


@dataclass(frozen=True, slots=True)
class Ensure:
    """Have it. `fetches`: bytes will have to come."""

    record: ModelRecord
    reason: str
    fetches: bool


@dataclass(frozen=True, slots=True)
class Remove:
    """Take it away, or what there is of it."""

    reason: str
    retain: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Do nothing. `wanted`: what is here must stay."""

    reason: str
    wanted: bool


Verdict = Ensure | Remove | Leave
Nodes = Mapping[str, Neighbour]


def holders_of(record: ModelRecord, copies: int, nodes: Nodes, me: Me) -> tuple[str, ...]:
    """The nodes that hold the copies, of those that count. This one never steps aside by itself: it goes on trying,
    and others take its share meanwhile."""
    selector = record.placement.selector
    labels = {node: each.labels for node, each in nodes.items()} | {me.node: me.labels}
    able = [(node, selector.weight(of)) for node, of in labels.items() if selector.holds(of)]
    aside = set(me.aside(record)) - {me.node}
    if not aside:
        return holders(record.model, able, copies)
    ranked = holders(record.model, able, len(able))
    skipped = set([node for node in ranked if node in aside][:MOST_ASIDE])
    return tuple(node for node in ranked if node not in skipped)[:copies]


Share = Callable[[ModelRecord, int, Nodes, Me], tuple[str, ...]]


def decide(
    records: Mapping[str, ModelRecord | None],
    nodes: Nodes | None,
    me: Me,
    copies: Mapping[str, Held],
    *,
    gone: Collection[str] = (),
    share: Share = holders_of,
) -> dict[str, Verdict]:
    """The verdict of each model that has a record, or a copy that was made for one.

    `records`: None for one that cannot be read. `nodes`: None while nobody could be asked. `gone`: models whose record
    was surely taken away, and not lost. `share`: who holds what, for a caller that knows it already.
    """
    verdicts = {
        model: of_record(model, record, nodes, me, copies.get(model), share=share) for model, record in records.items()
    }
    for model, held in copies.items():
        if model not in records and held.recorded:
            verdicts[model] = _without(held, surely=model in gone)
    return verdicts


def _without(held: Held, *, surely: bool) -> Verdict:
    if surely:
        return Remove("its record was taken away", held.retain)
    return Leave("its record is not there, and may have been lost", wanted=True)


def of_record(
    model: str,
    record: ModelRecord | None,
    nodes: Nodes | None,
    me: Me,
    held: Held | None,
    *,
    share: Share = holders_of,
) -> Verdict:
    """Of one model that has a record."""
    if record is None:
        return Leave("its record cannot be read", wanted=True)
    if record.deleting:
        return Remove("it was deleted", record.retain) if held else Leave("it was deleted", wanted=False)
    if not record.placement.selector.holds(me.labels):
        return _unwanted(record, held, "the selector of its record does not match this node")
    copies = record.placement.copies
    if copies == "all":
        return _wanted(record, me, held, "its record wants it on every node that matches")
    if nodes is None:
        return Leave("the other nodes are not known yet", wanted=True)
    chosen = share(record, copies, nodes, me)
    if me.node in chosen:
        return _wanted(record, me, held, f"this node is one of the {copies} that hold it")
    late = [node for node in chosen if not has_it(nodes.get(node), model)]
    if held is not None and late:
        return Leave(f"it goes once it is ready on {', '.join(late[:4])}", wanted=True)
    return _unwanted(record, held, f"others hold it: {', '.join(chosen[:4]) or 'no copy is wanted'}")


def has_it(node: Neighbour | None, model: str) -> bool:
    """Whether a node is there and tells that it can serve the model."""
    return node is not None and node.here and node.labels.get(f"{LABEL_OF_COPY}{model}") in _SERVES


def _unwanted(record: ModelRecord, held: Held | None, reason: str) -> Verdict:
    return Leave(reason, wanted=False) if held is None else Remove(reason, record.retain)


def _wanted(record: ModelRecord, me: Me, held: Held | None, reason: str) -> Verdict:
    best = me.choose(record)
    made = held.made if held is not None else None
    if made is None or made.want != fingerprint(best):
        return Ensure(record, reason, fetches=True)
    if made != made_for(best) or held is None or held.noted != record:
        return Ensure(record, reason, fetches=False)
    return Leave(reason, wanted=True)


def made_for(best: ModelRecord) -> Made:
    """What a copy for this record, its variant chosen, is made for."""
    return Made(fingerprint(best), best.profile, best.retain, best.generation)
