"""Starting an engine on demand: whether this node would, at which cost, and the lease that one node has at a time.

Who creates `start.<model>` in the leases bucket may start one; it expires after `spill_after_s`, so a fleet starts at
most one engine of a model in that time, wherever the requests went. Until it is over this node asks for no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import orjson

from bus.connection import Bus
from bus.errors import WrongRevision
from bus.kv import Bucket
from bus.watched import Tasks
from schemas.demand import SPILL_AFTER_S
from schemas.errors import PunaError
from worker.appetite import Appetite
from worker.engines import Engines
from worker.plans import Evict, Fits, Plan, Yield
from worker.slots import Slots

log = logging.getLogger(__name__)

YIELD_COST: Final = 6
"""Of a start that busy engines must make room for."""
NO_LEASE_PAUSE_S: Final = 1.0
"""How long to leave a model alone when the lease could not even be asked for."""


LATE_END_S: Final = 0.3
"""A lease may stand for so long, and longer, after its time."""


@dataclass(slots=True)
class _Lease:
    """`until`: when it is over at the latest, whoever holds it. `revision`: of ours, to give it up."""

    until: float
    revision: int | None = None


@dataclass(slots=True)
class Grounds:
    """What a start on demand is decided over."""

    engines: Engines
    slots: Slots
    appetite: Appetite = field(default_factory=Appetite)


class Starts:
    """Owner of this node's part in the leases. `on_change(model)` is called when an answer came,
    `on_denied(model)` before it when another node has the lease."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        grounds: Grounds,
        *,
        tasks: Tasks,
        clock: Callable[[], float],
        on_change: Callable[[str], None],
        on_denied: Callable[[str], None] = lambda _: None,
        spill_after_s: float = SPILL_AFTER_S,
    ) -> None:
        self._bus = bus
        self._node = node
        self._grounds = grounds
        self._tasks = tasks
        self._clock = clock
        self._on_change = on_change
        self._on_denied = on_denied
        self._spill_after_s = spill_after_s
        self._bucket = Bucket(bus, bus.names.bucket_leases)
        self._asking: set[str] = set()
        self._leases: dict[str, _Lease] = {}
        self._known: dict[str, int] = {}

    # -- deciding: plain ---------------------------------------------------------------------------------------------
    def cost(self, model: str) -> int | None:
        """The priority of a pull for a request that this node would start an engine for; None: it would not now."""
        now, grounds = self._clock(), self._grounds
        kind = grounds.appetite.kind(model, now)
        if kind is None or grounds.slots.closed or self._resting(model, now) or not grounds.engines.serves(model):
            return None
        if grounds.slots.free(model) or not grounds.slots.may_wait(model):
            return None
        if grounds.engines.starting(model) or (kind == "cold" and grounds.slots.ready(model)):
            return None
        plan = self._plan(model, grounds.appetite.waited_s(model, now))
        if isinstance(plan, Fits | Evict):
            return plan.cost
        return YIELD_COST if isinstance(plan, Yield) else None

    def _still(self, model: str, waited_s: float) -> bool:
        """Whether a start can still come of it: leases take a moment, and other models have some."""
        starting = self._grounds.engines.starting(model)
        return starting or isinstance(self._plan(model, waited_s), Fits | Evict | Yield)

    def _plan(self, model: str, waited_s: float) -> Plan:
        return self._grounds.engines.plan(model, waited_s)

    def _resting(self, model: str, now: float) -> bool:
        lease = self._leases.get(model)
        return model in self._asking or (lease is not None and now < lease.until)

    def asking(self, model: str) -> bool:
        """Whether the lease is being asked for now."""
        return model in self._asking

    # -- the lease ---------------------------------------------------------------------------------------------------
    def ask(self, model: str, request_id: str, answered: Callable[[bool], None]) -> None:
        """Ask for the lease for a request that is held. With it, an engine is wanted before `answered(True)`."""
        self._asking.add(model)
        self._tasks.start(f"lease {model}", self._ask(model, request_id, answered))

    async def _ask(self, model: str, request_id: str, answered: Callable[[bool], None]) -> None:
        try:
            lease = await self._create(model, request_id)
        finally:
            self._asking.discard(model)
        self._leases[model] = lease
        waited_s = self._grounds.appetite.waited_s(model, self._clock())
        if lease.revision is not None and not self._still(model, waited_s):
            self.failed(model)  # another model has taken the place meanwhile, and elsewhere there may be one
            lease.until = self._clock() + LATE_END_S
        granted = lease.revision is not None
        if granted:
            self._grounds.engines.want(model, f"request {request_id}", waited_s=waited_s)
        answered(granted)
        self._on_change(model)

    async def _create(self, model: str, request_id: str) -> _Lease:
        value = orjson.dumps({"node": self._node, "request": request_id})
        facts = {"event": "start_lease", "model": model, "request": request_id}
        try:
            key = self._bus.names.lease_start(model)
            try:
                revision = await self._bucket.create(key, value, ttl_s=self._spill_after_s)
            except WrongRevision:
                log.info("start_lease", extra=facts | {"granted": False})
                self._on_denied(model)
                return _Lease(self._clock() + await self._denied_s(model))
        except PunaError as error:
            log.warning("start_lease", extra=facts | {"granted": False, "reason": error.message})
            return _Lease(self._clock() + NO_LEASE_PAUSE_S)
        log.info("start_lease", extra=facts | {"granted": True})
        self._known[model] = revision
        return _Lease(self._clock() + self._spill_after_s, revision)

    async def _denied_s(self, model: str) -> float:
        """How long to ask no more. A lease that we knew of already is about to end: servers are late with that."""
        entry = await self._bucket.get(self._bus.names.lease_start(model))
        if entry is None or entry.revision == self._known.get(model):
            return LATE_END_S
        self._known[model] = entry.revision
        return self._spill_after_s

    def failed(self, model: str) -> None:
        """What was started on our lease came to nothing: somebody else may try at once."""
        lease = self._leases.get(model)
        if lease is not None and lease.revision is not None and self._clock() < lease.until:
            revision, lease.revision = lease.revision, None
            self._tasks.start(f"unlease {model}", self._give_up(model, revision))

    async def _give_up(self, model: str, revision: int) -> None:
        try:
            await self._bucket.delete(self._bus.names.lease_start(model), last=revision)
        except PunaError as error:  # it expires by itself
            log.info("start_lease_kept", extra={"event": "start_lease_kept", "model": model, "reason": error.code})

    def tick(self, now: float) -> None:
        """Forget leases that are over."""
        for model in [model for model, lease in self._leases.items() if now >= lease.until]:
            del self._leases[model]
            self._on_change(model)
