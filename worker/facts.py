"""What this node's heartbeat tells, asked of those who know it."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.node import OFFERS_LIMIT, Device, Engine, EngineUsage, NodeUsage, Offer, Pressure, Share
from worker.accelerators.shares import node_shares
from worker.devices import Devices
from worker.keeper import Keeper
from worker.serving import Serving
from worker.settings import WorkerSettings
from worker.usage import Usage


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """Everything as it is now."""

    settings: WorkerSettings
    found: Devices
    keeper: Keeper
    serving: Serving
    statistics: Usage

    def devices(self) -> tuple[Device, ...]:
        """Devices with their figures."""
        return self.found.current

    def accelerators(self) -> tuple[str, ...]:
        """Kinds of devices."""
        return tuple(dict.fromkeys(device.backend for device in self.found.current))

    def engines(self) -> tuple[Engine, ...]:
        """All engines, with who is in them."""
        return tuple(self.engine(engine_id) for engine_id in self.keeper.engines)

    def engine(self, engine_id: str) -> Engine:
        """One engine."""
        engine, kept = self.keeper.engines[engine_id], self.keeper.kept(engine_id)
        told = engine.snapshot(self.serving.slots.busy(engine_id))
        more = {
            "pinned": self.keeper.pinned(told.model),
            "yielding": kept is not None and (kept.yielding or kept.going is not None),
            "usage": self._usage(engine_id),
            "reason": told.reason or (kept.says if kept is not None else None),
        }
        return told.model_copy(update=more)

    def _usage(self, engine_id: str) -> EngineUsage | None:
        usage, carried = self.statistics.engine(engine_id), self.serving.tally.carried_by(engine_id)
        if usage is None:
            return None
        more = {"bus_received_bytes": carried.received_bytes, "bus_sent_bytes": carried.sent_bytes}
        return usage.model_copy(update=more)

    def offers(self) -> tuple[Offer, ...]:
        """What further engines would take."""
        return self.keeper.offers()[:OFFERS_LIMIT]

    def shares(self) -> dict[str, Share]:
        """Resources in shares."""
        return node_shares(self.found.current, self.engines(), self.settings)

    def usage(self) -> NodeUsage | None:
        """What the host uses."""
        return self.statistics.node

    def pressure(self) -> Pressure:
        """How much is going on."""
        return self.serving.pressure()
