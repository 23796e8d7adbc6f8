"""Who holds the copies of each model, worked out once for a fleet and not at every look.

It takes a few microseconds for each model and node; with hundreds of both that is more than requests should have to
wait for, so it is done piece by piece, and what was worked out stays until nodes or labels change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from schemas.model import ModelRecord
from schemas.selector import Selector
from schemas.subjects import LABEL_OF_COPY
from worker.desired.decide import Me, Nodes, holders_of

SLICE_S: Final = 0.002
"""Longest piece at a time."""


class Shares:
    """`lasting` of labels are all but those that tell of copies."""

    def __init__(self) -> None:
        self._basis: tuple[int, Mapping[str, str]] | None = None
        self._chosen: dict[str, tuple[ModelRecord, Collection[str], tuple[str, ...]]] = {}

    async def prepare(self, records: Iterable[ModelRecord | None], nodes: Nodes | None, me: Me, version: int) -> None:
        """Work out what is not known. `version`: another number means that the nodes may be others."""
        basis = (version, lasting(me.labels))
        if basis != self._basis:
            self._basis, self._chosen = basis, {}
        until = time.monotonic() + SLICE_S
        for record in tuple(records):
            if record is None or nodes is None or record.placement.copies == "all" or _changes(record):
                continue
            known, aside = self._chosen.get(record.model), me.aside(record)
            if known is None or known[0] is not record or known[1] != aside:
                self._chosen[record.model] = (record, aside, holders_of(record, record.placement.copies, nodes, me))
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_S

    def __call__(self, record: ModelRecord, copies: int, nodes: Nodes, me: Me) -> tuple[str, ...]:
        """As `holders_of`."""
        known = self._chosen.get(record.model)
        if known is not None and known[0] is record:
            return known[2]
        return holders_of(record, copies, nodes, me)


def lasting(labels: Mapping[str, str]) -> dict[str, str]:
    """Without those that tell of copies."""
    return {key: value for key, value in labels.items() if not key.startswith(LABEL_OF_COPY)}


def _changes(record: ModelRecord) -> bool:
    """Whether who holds it depends on what copies there are."""
    return any(key.startswith(LABEL_OF_COPY) for key in _keys(record.placement.selector))


def _keys(selector: Selector) -> Iterable[str]:
    yield from selector.labels
    for term in (*selector.terms, *(each.term for each in selector.preferred)):
        yield from (expression.key for expression in term.match)
