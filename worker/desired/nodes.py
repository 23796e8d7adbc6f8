"""The nodes that count when copies are shared out: those that live, and those that have not been away for long.

They are read from time to time, not followed: heartbeats of hundreds of nodes, each with all its figures, would be
more than everything else on the bus together. The more nodes, the longer between two looks, so that one node's share
of the reading stays the same. How long a node has been away counts only while we can see the others; after a silence
of the server, or a start of our own, everybody who was known has the whole grace again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson

from bus.kv import Bucket, Entry
from schemas.errors import InvalidName
from schemas.subjects import LABEL_OF_COPY, decode
from worker.desired.decide import Neighbour
from worker.desired.shares import lasting

FRESH_S: Final = 2.0
READ_S_PER_NODE: Final = 0.1
"""Between two looks, for each node there is."""

Labels = dict[str, str]


@dataclass(slots=True)
class _Known:
    revision: int
    labels: Labels
    draining: bool = False
    missed_at: float | None = None
    """Since when it is away or drains."""
    failed: Collection[str] = ()
    """Models of which it tells that its copy has failed."""


class Nodes:
    """By name. `keep` stores what `remember` gives back to a later worker of this node."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        grace_s: float,
        keep: Callable[[Mapping[str, Labels]], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.version = 0
        """Another number whenever nodes come, go, or have other labels (but those of copies)."""
        self.looks = 0
        """Another number after each look."""
        self._bucket = bucket
        self._grace_s = grace_s
        self._keep = keep
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}
        self._kept: dict[str, Labels] = {}
        self._read_at: float | None = None
        self._session = -1

    def remember(self, before: Mapping[str, Labels]) -> None:
        """Labels of the nodes that an earlier worker of this node knew."""
        self._known = {node: _Known(0, labels) for node, labels in before.items()} | self._known
        self._kept = dict(before)

    @property
    def due_at(self) -> float:
        """When to look again, on the monotonic clock."""
        if self._read_at is None:
            return self._monotonic()
        return self._read_at + max(FRESH_S, READ_S_PER_NODE * len(self._known))

    async def read(self) -> None:
        """Look, unless that was done a moment ago. Raises `PunaError` while the server cannot be asked."""
        now, session = self._monotonic(), self._bucket.bus.session
        if self._read_at is not None and session == self._session and now - self._read_at < FRESH_S:
            return
        self.seen(await self._bucket.entries(), anew=session != self._session)
        self._session, self._read_at = session, self._monotonic()
        self.looks += 1

    def seen(self, entries: Mapping[str, Entry], *, anew: bool) -> None:
        """These are the heartbeats that there are. `anew`: nothing was seen for a while before this."""
        now = self._monotonic()
        here = {_name(key): entry for key, entry in entries.items()}
        for node, entry in here.items():
            known = self._known.get(node)
            if known is None or known.revision != entry.revision:
                self._known[node] = _read(entry, known)
        for node, known in tuple(self._known.items()):
            if node in here and not known.draining:
                known.missed_at = None
            elif known.missed_at is None or anew:
                known.missed_at = now
            elif now - known.missed_at > self._grace_s:
                del self._known[node]
            if node not in here:
                known.revision = 0
        self._note()

    def _note(self) -> None:
        told = {node: lasting(known.labels) for node, known in self._known.items()}
        if told != self._kept:
            self._kept = told
            self.version += 1
            self._keep(told)

    def view(self) -> Mapping[str, Neighbour] | None:
        """Those that count; None before the first look."""
        if self._read_at is None:
            return None
        return {node: Neighbour(known.labels, known.missed_at is None) for node, known in self._known.items()}

    def failed(self) -> Mapping[str, Collection[str]]:
        """The nodes whose copies have failed, by model."""
        found: dict[str, set[str]] = {}
        for node, known in self._known.items():
            for model in known.failed:
                found.setdefault(model, set()).add(node)
        return found

    async def labels(self) -> Mapping[str, Mapping[str, str]]:
        """Of all that count, as of now. Raises `PunaError`."""
        await self.read()
        return {node: known.labels for node, known in self._known.items()}

    async def live(self) -> Mapping[str, Mapping[str, str]]:
        """Of those that are there now. Raises `PunaError`."""
        await self.read()
        return {node: known.labels for node, known in self._known.items() if known.missed_at is None}


def _name(key: str) -> str:
    try:
        return decode(key)
    except InvalidName:
        return key


def _read(entry: Entry, before: _Known | None) -> _Known:
    """Only what is needed of a heartbeat; one that cannot be read says that the node lives."""
    missed_at, labels = (before.missed_at, before.labels) if before is not None else (None, {})
    try:
        beat: Any = orjson.loads(entry.value)
    except orjson.JSONDecodeError:
        return _Known(entry.revision, labels, False, missed_at)
    if not isinstance(beat, dict):
        return _Known(entry.revision, labels, False, missed_at)
    told = cast("dict[str, Any]", beat)
    found = told.get("labels")
    if isinstance(found, dict):
        labels = {str(key): str(value) for key, value in cast("dict[Any, Any]", found).items()}
    return _Known(entry.revision, labels, bool(told.get("draining")), missed_at, _failed(labels))


def _failed(labels: Labels) -> Collection[str]:
    told = [key for key, value in labels.items() if value == "Failed" and key.startswith(LABEL_OF_COPY)]
    return tuple(key.removeprefix(LABEL_OF_COPY) for key in told)
