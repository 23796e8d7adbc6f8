"""Labels that every node has, whatever its settings say: what its hardware is, and whether it serves."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

from schemas.node import Device
from schemas.subjects import LABEL_ARCH, LABEL_BACKEND, LABEL_ENGINE, LABEL_SHAPE, NO_ENGINE
from worker.desired.variants import shape_of


def hardware_labels(devices: Sequence[Device], arch: str | None = None, *, engine: bool = True) -> Mapping[str, str]:
    """Of a node with these devices. `engine`: it has an engine program."""
    gpus = [each for each in devices if each.backend != "cpu"]
    backends = [each.backend for each in gpus]
    backend = min(backends, key=lambda name: (-backends.count(name), name), default="cpu")
    return {
        LABEL_SHAPE: shape_of(gpus),
        LABEL_BACKEND: backend,
        LABEL_ARCH: arch or platform.machine(),
        LABEL_ENGINE: "yes" if engine else NO_ENGINE,
    }
