"""Nodes that were to hold a copy and cannot: the next ones take their share meanwhile.

A node says so itself, in the record of its copy: `Failed`, with an error that is about that node and not about the
model. It goes on trying, ever more seldom, and has its share back once it has the copy.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import Final

from schemas.errors import PunaError
from schemas.model import CopyRecord, ModelRecord
from schemas.source import parse_source
from worker.desired.decide import Neighbour, has_it
from worker.desired.nodes import Nodes
from worker.desired.records import Models, Seen
from worker.sources.errors import Denied, DiskFailed, NoSpace, NotThere, Unsupported
from worker.store.errors import BadPlace, NeverFits, ReadOnlyRoot, RootGone

log = logging.getLogger(__name__)

STAY_S: Final = 60.0
"""For so long after it was seen to: while it tries again it has not failed."""
_OF_THE_NODE: Final = frozenset(
    each.code for each in (NeverFits, NoSpace, DiskFailed, RootGone, ReadOnlyRoot, BadPlace, Denied, Unsupported)
)
_ON_THE_NODE: Final = ("file", "local", "pvc")
"""Kinds of sources that are another thing on each node."""


def cannot(copy: CopyRecord, record: ModelRecord) -> bool:
    """Whether a node has said that it cannot have the model as it is wanted now, and others perhaps can."""
    if copy.state != "Failed" or copy.generation != record.generation:
        return False
    return copy.error in _OF_THE_NODE or (copy.error == NotThere.code and _is_local(copy.source or record.source))


def _is_local(source: str) -> bool:
    try:
        return parse_source(source).scheme in _ON_THE_NODE
    except PunaError:
        return False


class Asides:
    """Who steps aside, as far as this node knows."""

    def __init__(self, models: Models, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._models = models
        self._monotonic = monotonic
        self._until: dict[tuple[str, str, int], float] = {}
        self._looked = -1

    def of(self, record: ModelRecord) -> Collection[str]:
        """The nodes that cannot hold it as it is wanted now."""
        if not self._until:
            return frozenset[str]()
        now = self._monotonic()
        wanted = (record.model, record.generation)
        return frozenset(
            node for (model, node, generation), until in self._until.items()
            if (model, generation) == wanted and now < until
        )  # fmt: skip

    async def look(self, seen: Mapping[str, Seen], nodes: Nodes) -> None:
        """See what nodes say whose copies have failed, once for each look at the nodes. Raises `PunaError`."""
        if nodes.looks == self._looked:
            return
        self._forget(nodes.view() or {})
        failed = nodes.failed()
        for model in sorted(failed.keys() & seen.keys()):
            record = seen[model].record
            if record is not None and not record.deleting and record.placement.copies != "all":
                for copy in await self._models.copies_of(model):
                    if copy.node in failed[model] and cannot(copy, record):
                        self._note(copy, record)
        self._looked = nodes.looks

    def _forget(self, nodes: Mapping[str, Neighbour]) -> None:
        """Those that have it now, and those of which nothing was heard for a while."""
        now = self._monotonic()
        self._until = {
            (model, node, generation): until
            for (model, node, generation), until in self._until.items()
            if now < until and not has_it(nodes.get(node), model)
        }

    def _note(self, copy: CopyRecord, record: ModelRecord) -> None:
        key = (copy.model, copy.node, record.generation)
        if key not in self._until:
            fields = {"event": "node_steps_aside", "model": copy.model, "holder": copy.node, "error": copy.error}
            log.info("node_steps_aside", extra=fields)
        self._until[key] = self._monotonic() + STAY_S
