"""What a node computes with.

The built-in kinds are made here and not declared as entry points: some of them need the engine's list and each other,
and they must be there in a checkout that nobody installed. Strangers' kinds come by entry points in the group
`puna.accelerators`: the name is the backend, the object something to call without arguments that gives an
`Accelerator`. A stranger's takes the place of a built-in one of its name.

A card that several backends see is offered once: by its vendor's own backend, else by SYCL, else by Vulkan.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol

from schemas.node import Device
from worker.accelerators.cards import rank
from worker.accelerators.choice import AcceleratorSettings
from worker.accelerators.cpu import Cpu
from worker.accelerators.cuda import Cuda
from worker.accelerators.drm import SYS
from worker.accelerators.guard import Chosen, Hidden, Stranger, Unlisted
from worker.accelerators.listed import EngineDevices, no_pin
from worker.accelerators.listing import EngineList
from worker.accelerators.metal import Metal
from worker.accelerators.rocm import Rocm
from worker.accelerators.sycl import Sycl
from worker.accelerators.tpu import Tpu
from worker.accelerators.vulkan import Vulkan

__all__ = ["Accelerator", "AcceleratorSettings", "chosen", "discover", "environment", "notices", "sample"]

log = logging.getLogger(__name__)

ENTRY_POINTS: Final = "puna.accelerators"
BACKENDS: Final = ("cuda", "rocm", "metal", "sycl", "vulkan", "cpu")
_EVERYTHING: Final = AcceleratorSettings()
_LISTED: Final[Mapping[str, type[Sycl] | type[Vulkan]]] = {"sycl": Sycl, "vulkan": Vulkan}
_PINS: Final[Mapping[str, Callable[[], Cuda | Rocm]]] = {"cuda": Cuda, "rocm": Rocm}


class Accelerator(Protocol):
    """One kind of device. No method raises: what cannot be told is left out. All may take seconds and are called from
    threads, never two at a time for one accelerator except `environment`, which is quick."""

    backend: str

    def discover(self) -> bool:
        """Whether this host has any such device. Called once, before the others."""
        ...

    def sample(self) -> list[Device]:
        """The devices with their figures of now. One that is gone is not among them."""
        ...

    def environment(self, devices: Sequence[str]) -> Mapping[str, str]:
        """What an engine's environment needs so that it sees these devices of this kind and no other; without any,
        so that it sees none."""
        ...


def discover(
    engine: Sequence[str] = (),
    choice: AcceleratorSettings = _EVERYTHING,
    *,
    listing: EngineList | None = None,
    makers: Mapping[str, Callable[[], Accelerator]] | None = None,
    root: Path = SYS,
) -> list[Accelerator]:
    """The kinds that this host has, by preference, the CPU last. It asks drivers and `engine`, the program's command
    line, and may take many seconds: call it from a thread. Without an engine, SYCL and Vulkan are not looked for.
    The rest is for those who bring a list, drivers or a tree of /sys of their own."""
    if listing is None and engine:
        listing = EngineList(engine)
    if makers is None:
        makers = {"cuda": Cuda, "rocm": Rocm, "metal": lambda: Metal(listing)}
    backends = {entry.backend for entry in listing.read()} if listing else set[str]()
    strangers = _strangers()
    _check(choice, {*BACKENDS, *backends, *strangers, Tpu.backend})
    Tpu(root).discover()
    own = {backend: make for backend, make in makers.items() if backend not in strangers}
    found = [*_vendors(choice, own, listing, backends), *_extensions(choice, strangers)]
    if listing is not None:
        found += _listed(choice, listing, backends, found, root)
    if choice.permits("cpu") and "cpu" not in strangers and (cpu := Cpu()).discover():
        found.append(cpu)
    return sorted(found, key=lambda each: (each.backend == "cpu", rank(each.backend), each.backend))


def chosen(accelerators: Iterable[Accelerator], names: Collection[str]) -> list[Accelerator]:
    """The same, with no other devices than those named; without names, all of theirs."""
    return [Chosen(each, names) for each in accelerators] if names else list(accelerators)


def sample(accelerators: Iterable[Accelerator]) -> tuple[Device, ...]:
    """All devices with their figures of now."""
    return tuple(device for each in accelerators for device in each.sample())


def environment(accelerators: Iterable[Accelerator], devices: Iterable[str]) -> dict[str, str]:
    """What an engine's environment needs so that it sees these devices, in their order, and no other."""
    wanted: dict[str, list[str]] = {}
    for device in dict.fromkeys(devices):
        wanted.setdefault(device.partition(":")[0], []).append(device)
    out: dict[str, str] = {}
    for each in accelerators:
        out |= each.environment(wanted.pop(each.backend, ()))
    for device in (device for unknown in wanted.values() for device in unknown):
        log.warning("device_unknown", extra={"event": "device_unknown", "device": device})
    return out


def notices() -> list[str]:
    """Sentences for a person about devices that are here and that Puna knows but cannot use."""
    return Tpu().notices()


def _vendors(
    choice: AcceleratorSettings,
    makers: Mapping[str, Callable[[], Accelerator]],
    listing: EngineList | None,
    backends: Collection[str],
) -> Iterator[Accelerator]:
    """Those that find their devices by themselves."""
    for backend, make in makers.items():
        one = make()
        if not choice.permits(backend):
            yield Hidden(one)
        elif _has_devices(one):
            unlisted = listing is not None and listing.answered and backend not in backends
            yield Unlisted(one, listing) if unlisted and listing else one


def _has_devices(one: Accelerator) -> bool:
    """A driver that does what no driver was seen to do costs its own devices, and not the node."""
    try:
        return one.discover()
    except Exception:
        log.exception("accelerator_broken", extra={"event": "accelerator_broken", "accelerator": one.backend})
        return False


def _extensions(choice: AcceleratorSettings, strangers: Mapping[str, Callable[[], Any]]) -> Iterator[Accelerator]:
    for backend, make in strangers.items():
        if choice.permits(backend) and (stranger := _stranger(backend, make)) and stranger.discover():
            yield stranger


def _listed(
    choice: AcceleratorSettings,
    listing: EngineList,
    backends: Collection[str],
    found: Sequence[Accelerator],
    root: Path,
) -> Iterator[Accelerator]:
    """Those that only the engine's list shows: SYCL and Vulkan, and any other whose own tools are missing."""
    rivals = frozenset(backend for backend in backends if choice.permits(backend))
    beside = [each.inner for each in found if isinstance(each, Unlisted)]
    for backend in sorted(set(backends) - {each.backend for each in found}):
        one: EngineDevices
        if backend in _LISTED:
            one = _LISTED[backend](listing, rivals=rivals, beside=beside, root=root)
        else:
            pin = _PINS[backend]().environment if backend in _PINS else no_pin
            one = EngineDevices(backend, listing, rivals=rivals, beside=beside, root=root, pin=pin)
        if not choice.permits(backend):
            yield Hidden(one)
        elif one.discover():
            yield one


def _check(choice: AcceleratorSettings, known: Collection[str]) -> None:
    """A misspelt name would allow or block nothing in silence."""
    for name in (*choice.allow, *choice.block):
        if name not in known:
            fields = {"event": "accelerator_unknown", "accelerator": name, "known": ", ".join(sorted(known))}
            log.warning("accelerator_unknown", extra=fields)
    if Tpu.backend in choice.allow:
        reason = "llama.cpp has no backend for TPUs"
        log.warning("accelerator_unusable", extra={"event": "accelerator_unusable", "reason": reason})


def _strangers() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            found[point.name] = point.load()
        except Exception:
            log.exception("accelerator_broken", extra={"event": "accelerator_broken", "accelerator": point.name})
    return found


def _stranger(backend: str, make: Callable[[], Any]) -> Stranger | None:
    try:
        return Stranger(backend, make())
    except Exception:
        log.exception("accelerator_broken", extra={"event": "accelerator_broken", "accelerator": backend})
        return None
