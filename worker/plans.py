"""What placement speaks of: a model's need, the room of devices, the engines that are there, and what can be done.

Plain data: no clock, no effects. Times are seconds up to now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from schemas.node import EngineState

Pack = Literal["evenly", "fill"]
"""`evenly`: the emptiest device is taken. `fill`: the fullest that still has the room, so that the others stay free."""


@dataclass(frozen=True, slots=True)
class Need:
    """Memory of one engine: `spread_bytes` over its devices together (weights, cache, projector), `each_bytes` on each
    of them (buffers). `context_tokens` is the context that this is for; None: the engine decides."""

    spread_bytes: int
    each_bytes: int = 0
    context_tokens: int | None = None

    def total_bytes(self, devices: int = 1) -> int:
        """On so many devices together."""
        return self.spread_bytes + self.each_bytes * devices


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """One device. `free_bytes` is what a new engine could have now: what is reserved and what engines on their way
    have claimed is off; below 0 where more is given than there is. `total_bytes` is what engines may have in all.
    `reason`: why nothing may be placed here now. `pressure` is the share of its slots that are busy, 0…1."""

    device: str
    free_bytes: int
    total_bytes: int
    reason: str | None = None
    pressure: float = 0.0

    @property
    def is_cpu(self) -> bool:
        """Whether it is the host's processors."""
        return is_cpu(self.device)


@dataclass(frozen=True, slots=True)
class Resident:
    """One engine that is here. `held_bytes` by device; `reload_s` is what it would cost to have it again; `ready_s` and
    `idle_s` are how long it has been ready and without a request."""

    engine: str
    model: str
    devices: tuple[str, ...]
    held_bytes: Mapping[str, int]
    state: EngineState = "ready"
    busy: int = 0
    waiting: int = 0
    pinned: bool = False
    ready_s: float = 0.0
    idle_s: float = 0.0
    reload_s: float = 0.0
    demand_per_s: float = 0.0
    served: bool = False
    """It has had a request since it got ready."""
    yielding: bool = False
    """It takes nothing new, for another model's sake."""

    @property
    def loss(self) -> float:
        """What stopping it costs: seconds of reload that its model's requests would ask for in each second. One that
        yields is as good as gone."""
        return 0.0 if self.yielding else self.reload_s * self.demand_per_s


@dataclass(frozen=True, slots=True)
class Wanted:
    """One more engine of a model. `devices` are those allowed, none: all; `ordered` says whether the first of them is
    the best, else it is the emptiest. `split`: over so many devices; None: over the fewest that can hold it."""

    model: str
    need: Need
    devices: tuple[str, ...] = ()
    split: int | None = None
    waited_s: float = 0.0
    local: bool = True
    """Its files are on this node's disk."""
    lenient: bool = False
    """It may be started where its memory is not there (`memory_check: warn`), if it gets all that can be made free."""
    ordered: bool = True
    engines_limit: int | None = None
    """Engines of the model that there may be on this node."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of the devices that have the room is taken, and how long an engine that got ready may stay: `turn_factor`
    times its reload time, within the bounds."""

    pack: Pack = "evenly"
    turn_factor: float = 2.0
    turn_least_s: float = 2.0
    turn_most_s: float = 60.0


STANDARD: Final = Policy()


@dataclass(frozen=True, slots=True)
class Fits:
    """It can be started on these devices now."""

    devices: tuple[str, ...]
    cost: int
    need: Need = field(default=Need(0), compare=False)


@dataclass(frozen=True, slots=True)
class Evict:
    """It can be started on these devices once these idle engines are stopped."""

    devices: tuple[str, ...]
    victims: tuple[str, ...]
    cost: int
    need: Need = field(default=Need(0), compare=False)


@dataclass(frozen=True, slots=True)
class Yield:
    """These engines have had their turn: they should take nothing new, and are stopped once they are idle."""

    engines: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now. `until_s`: seconds from now after which it is worth another look; None: when something changes.
    `foreign`: what is in the way is not this node's."""

    reason: str
    until_s: float | None = None
    foreign: bool = False


@dataclass(frozen=True, slots=True)
class Cannot:
    """Never on this node as it is."""

    reason: str


Plan = Fits | Evict | Yield | Wait | Cannot


def is_cpu(device: str) -> bool:
    """Whether a device's name is that of a host's processors."""
    return device.partition(":")[0] == "cpu"
