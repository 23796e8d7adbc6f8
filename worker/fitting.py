"""Whether a model could ever run on this node, before its files are fetched. Plain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from schemas.model import Profile, Wanted
from schemas.node import Device
from worker.accelerators.shares import reserved_bytes
from worker.memory import gib
from worker.settings import WorkerSettings
from worker.sources import Listing, RemoteFile

_LOADED: Final = ("model", "shard", "projector")
_ELSEWHERE: Final = frozenset(
    ("n-gpu-layers", "gpu-layers", "n-cpu-moe", "cpu-moe", "override-tensor", "rpc", "model-draft", "device")
)
"""Flags by which weights may lie somewhere else than on the node's GPUs: nothing is refused then."""


def why_never(want: Wanted, listing: Listing, devices: Iterable[Device], settings: WorkerSettings) -> str | None:
    """Why no device of the node could ever hold the model's weights; None if one could, or if nobody can tell.

    Only GPUs refuse: a host reads weights from its disk as it needs them. What the cache takes is not counted.
    """
    gpus = [each for each in devices if each.backend != "cpu" and each.memory_total_bytes > 0]
    if not gpus or not settings.store.fit_check or settings.memory_check in ("warn", "off") or _is_free(want.profile):
        return None
    weights = weights_bytes(listing.files)
    room = _most(gpus, want.profile.devices_per_engine, settings)
    if weights is None or weights <= room:
        return None
    return (
        f"its files have {gib(weights)}, and all that this node's GPUs could ever give one engine is {gib(room)}. Take "
        "a smaller quantisation, allow the CPU (cpu_fallback), or set store.fit_check: false to fetch it all the same"
    )


def weights_bytes(files: Sequence[RemoteFile]) -> int | None:
    """What an engine loads; None if a size is not known."""
    sizes = [file.size_bytes for file in files if file.role in _LOADED]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _is_free(profile: Profile) -> bool:
    given = (name.removeprefix("--").replace("_", "-") for name in profile.flags)
    return profile.cpu_fallback or not _ELSEWHERE.isdisjoint(given)


def _most(gpus: Sequence[Device], count: int | None, settings: WorkerSettings) -> int:
    """Of the `count` largest; an engine may be spread over all of them."""
    parents = {each.parent for each in gpus}
    rooms = sorted((_room(each, settings) for each in gpus if each.device not in parents), reverse=True)
    return sum(rooms[:count])


def _room(device: Device, settings: WorkerSettings) -> int:
    most = max(device.memory_total_bytes - reserved_bytes(device, settings), 0)
    limit = settings.memory_limit_bytes
    return most if limit is None else min(most, limit)
