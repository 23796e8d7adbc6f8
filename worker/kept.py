"""One engine in its keeper's hands: the engine, and what only the keeper knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from worker.engine import Engine
from worker.plans import Need

Origin = Literal["preload", "pinned", "operator", "held", "adopted"]
"""Why it was started: with the node, by an operator, for a request that is held, or it ran already."""


@dataclass(eq=False, slots=True)
class Kept:
    """`after`: engines that must be gone before it starts. `launched`: it has been asked to run. `going`: why it is
    being stopped for good. `shown`: its memory is in the devices' own figures. Times by the keeper's clock."""

    engine: Engine
    need: Need
    origin: Origin
    after: set[str] = field(default_factory=set[str])
    launched: bool = False
    going: str | None = None
    shown: bool = False
    yielding: bool = False
    ready_at: float | None = None
    failures: int = 0
    last_state: str = "stopped"

    @property
    def engine_id(self) -> str:
        """As the engine's."""
        return self.engine.engine_id

    @property
    def model(self) -> str:
        """What it serves."""
        return self.engine.spec.model

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it is, or will be."""
        return self.engine.spec.devices

    @property
    def on_its_way(self) -> bool:
        """Whether it is going to be ready, as far as one knows."""
        return self.going is None and (not self.launched or self.engine.state in ("starting", "stopped"))

    @property
    def says(self) -> str | None:
        """What the engine itself cannot tell of why it is not ready."""
        if self.going is not None:
            return self.going
        if self.after:
            return f"starts when {', '.join(sorted(self.after))} is gone"
        return None if self.launched else "waits for its turn to load (instance_start_concurrency)"

    @property
    def retried(self) -> bool:
        """Whether it is kept for ever, however often it fails."""
        return self.origin in ("preload", "pinned", "operator")

    @property
    def unfit(self) -> bool:
        """Whether its files or its memory forbid it: it has no process, and will have none for now."""
        return self.engine.state == "crashed" and self.engine.snapshot().unfit

    def held_bytes(self) -> dict[str, int]:
        """What it takes of each device: as measured, else as planned."""
        told = self.engine.snapshot()
        if told.state == "crashed" and told.unfit:
            return {}
        measured = told.memory_measured_bytes if told.state == "ready" else None
        whole = measured or told.memory_planned_bytes or self.need.total_bytes(len(self.devices))
        return dict.fromkeys(self.devices, whole // len(self.devices))
