"""Devices that were there a moment ago. A GPU that falls off its bus must not just vanish from the inventory."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from schemas.node import Device, DeviceMetrics

log = logging.getLogger(__name__)

GONE: Final = "its driver does not show it any more"
KEPT_S: Final = 300.0
"""So long a device that is gone is still told of."""


class Presence:
    """The devices of one backend over time."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept_s = kept_s
        self._known: dict[str, Device] = {}
        self._gone_since: dict[str, float] = {}

    def update(self, sampled: Iterable[Device], now: float) -> tuple[Device, ...]:
        """What to tell: the devices of this sample, and those that are gone, with a reason and without free memory."""
        present = {device.device: device for device in sampled}
        for name in present.keys() & self._gone_since.keys():
            del self._gone_since[name]
            log.info("device_back", extra={"event": "device_back", "device": name})
        for name in self._known.keys() - present.keys() - self._gone_since.keys():
            self._gone_since[name] = now
            log.warning("device_gone", extra={"event": "device_gone", "device": name, "reason": GONE})
        self._forget(now)
        self._known |= present
        return tuple(present.get(name) or gone(device) for name, device in self._known.items())

    def _forget(self, now: float) -> None:
        for name in [name for name, since in self._gone_since.items() if now - since > self._kept_s]:
            del self._gone_since[name], self._known[name]


def gone(device: Device, reason: str = GONE) -> Device:
    """The device as one that nothing may be placed on."""
    return device.model_copy(update={"memory_free_bytes": 0, "metrics": DeviceMetrics(), "reason": reason})
