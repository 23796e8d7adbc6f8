"""A demand signal: a model is wanted and nothing warm can take a request, or one has waited too long."""

from __future__ import annotations

from typing import Literal

from schemas.frame import BadFrame
from schemas.node import Wire

DEMAND_EVERY_S = 1.0
"""How often a demand is repeated while it lasts; a worker forgets one after `DEMAND_FORGOTTEN_S`."""
DEMAND_FORGOTTEN_S = 2.5
SPILL_AFTER_S = 5.0
"""How long a request waits for engines that are there, or on their way, before one more is started."""
PAYLOAD_LIMIT_BYTES = 1024


class Demand(Wire):
    """The payload of `puna.demand.<model>`. No payload at all means `cold`."""

    kind: Literal["cold", "spill"] = "cold"
    """`cold`: no engine in the fleet is ready or on its way. `spill`: there are some, and they are not enough."""
    waiting: int = 1
    """Requests that wait, as far as the sender knows."""
    oldest_s: float = 0.0
    """How long the first of them has waited."""

    def encode(self) -> bytes:
        """As JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, raw: bytes) -> Demand:
        """Raises `BadFrame` for anything that is no demand."""
        if len(raw) > PAYLOAD_LIMIT_BYTES:
            raise BadFrame(f"a demand has {len(raw)} bytes; at most {PAYLOAD_LIMIT_BYTES} are read")
        try:
            return cls.model_validate_json(raw or b"{}")
        except ValueError as error:
            raise BadFrame("not a demand") from error
