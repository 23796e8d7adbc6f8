"""What a node computes with. Strangers' kinds are found through entry points."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Final, Protocol, cast

from schemas.node import Device
from worker.accelerators.cpu import Cpu
from worker.accelerators.cuda import Cuda

log = logging.getLogger(__name__)

ENTRY_POINTS: Final = "puna.accelerators"
_NOTHING: Final[Mapping[str, str]] = {}


class Accelerator(Protocol):
    """One kind of device. No method raises: what cannot be told is left out."""

    backend: str

    def discover(self) -> bool:
        """Whether this host has any such device. Called once, before the others."""
        ...

    def sample(self) -> list[Device]:
        """The devices with their figures of now."""
        ...

    def environment(self, device: str) -> Mapping[str, str]:
        """What an engine's environment needs so that it sees this device alone."""
        ...


BUILT_IN: Final[dict[str, Callable[[], Accelerator]]] = {"cpu": Cpu, "cuda": Cuda}


def discover() -> list[Accelerator]:
    """The kinds that this host has, the CPU last."""
    kinds = BUILT_IN | _strangers()
    found = [found for make in kinds.values() if (found := make()).discover()]
    return sorted(found, key=lambda each: (each.backend == "cpu", each.backend))


def sample(accelerators: Iterable[Accelerator]) -> tuple[Device, ...]:
    """All devices with their figures of now."""
    return tuple(device for each in accelerators for device in each.sample())


def environment(accelerators: Iterable[Accelerator], devices: Iterable[str]) -> dict[str, str]:
    """What an engine's environment needs so that it sees these devices and no other. Later devices of one kind join
    the earlier ones, separated by commas."""
    out: dict[str, str] = {}
    by_backend = {each.backend: each for each in accelerators}
    for device in devices:
        found = by_backend.get(device.partition(":")[0])
        wanted = found.environment(device) if found else _NOTHING
        for name, value in wanted.items():
            out[name] = value if out.get(name, value) == value else f"{out[name]},{value}"
    return out


def _strangers() -> dict[str, Callable[[], Accelerator]]:
    found: dict[str, Callable[[], Accelerator]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found[point.name] = cast(Callable[[], Accelerator], point.load())
        except Exception:
            log.exception("accelerator_unusable", extra={"event": "accelerator_unusable", "accelerator": point.name})
    return found
