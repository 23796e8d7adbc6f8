"""What the host has and uses, by all that runs on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import psutil

from schemas.node import DiskUsage, NodeUsage
from worker.cores import usable_cores

_LOOPBACK = ("lo", "lo0")


def read_host(places: Mapping[str, Path], at: float) -> NodeUsage:
    """The figures of now; `at` is Unix seconds. `places` are folders by what they are for; the share of processors is
    since the last call."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    received, sent = _network()
    return NodeUsage(
        sampled_at=at,
        cpu_percent=psutil.cpu_percent(None),
        cpu_count=usable_cores(),
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        swap_used_bytes=swap.used,
        disks=tuple(disk for place, path in places.items() if (disk := _disk(place, path)) is not None),
        network_received_bytes=received,
        network_sent_bytes=sent,
    )


def _network() -> tuple[int | None, int | None]:
    try:
        cards = psutil.net_io_counters(pernic=True)
    except (OSError, RuntimeError):  # a container without /proc/net
        return None, None
    outer = [card for name, card in cards.items() if name not in _LOOPBACK]
    return sum(card.bytes_recv for card in outer), sum(card.bytes_sent for card in outer)


def _disk(place: str, path: Path) -> DiskUsage | None:
    """Of the nearest folder above that is there."""
    there = next((each for each in (path, *path.parents) if os.path.lexists(each)), None)
    try:
        usage = shutil.disk_usage(there) if there is not None else None
    except OSError:
        return None
    return DiskUsage(place=place, total_bytes=usage.total, free_bytes=usage.free) if usage else None
