"""How a model stands on this node, in one word and one reason: for the list of models, and beside a 503.

| state         | what there is                                                                  |
|---------------|--------------------------------------------------------------------------------|
| `ready`       | an engine that takes requests                                                  |
| `loading`     | none, and one starts, or will be tried again                                   |
| `unloaded`    | none, and its files: a request starts one, as soon as there is room            |
| `unavailable` | none, and there will be none unless somebody mends something: `reason` says it |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from schemas.node import Engine, Offer

_RANKS: Final = {"ready": 0, "starting": 1, "stopped": 2, "crashed": 3, "stopping": 4}


@dataclass(frozen=True, slots=True)
class Standing:
    """`progress` is 0 to 1, `eta_s` by how long the last load took."""

    state: str
    reason: str | None = None
    progress: float | None = None
    eta_s: float | None = None

    def told(self) -> dict[str, str | float | None]:
        """As clients read it."""
        return asdict(self)


def standing(engines: Sequence[Engine], offer: Offer | None) -> Standing:
    """Of a model with these engines and this offer of one more; the engine that is nearest to being ready counts."""
    nearest = min(engines, key=lambda each: (each.yielding, _RANKS[each.state]), default=None)
    if nearest is not None and nearest.state == "ready" and not nearest.yielding:
        return Standing("ready")
    if nearest is not None and nearest.state == "starting":
        return _starting(nearest)
    possible = offer is not None and not offer.never
    if nearest is not None and not hopeless(nearest) and not (possible and _going(nearest)):
        return Standing("loading", nearest.reason)
    if offer is not None and possible:
        return Standing("unloaded", None if offer.cost is not None else offer.reason, None, offer.load_seconds)
    reason = (nearest.reason if nearest is not None else None) or (offer.reason if offer is not None else None)
    return Standing("unavailable", reason or "no engine serves it")


def hopeless(engine: Engine) -> bool:
    """Whether it will not come up by itself soon."""
    return engine.state == "crashed" and (engine.unfit or engine.breaker_open or engine.next_retry_at is None)


def _going(engine: Engine) -> bool:
    return engine.state == "stopping" or engine.yielding


def _starting(engine: Engine) -> Standing:
    left_s = None if engine.load_seconds is None else engine.load_seconds * (1 - (engine.progress or 0.0))
    return Standing("loading", engine.reason, engine.progress, left_s)
